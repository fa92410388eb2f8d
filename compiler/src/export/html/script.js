// What the pointer or a finger is on, at once; without scripts the browser shows the same text after a moment.
const tip = document.getElementById("tip");
const show = (event) => {
  // What is drawn of several pieces has one text.
  const shown = event.target.closest?.("g.stay") ?? event.target;
  const title = shown.querySelector && shown.querySelector(":scope > title");
  const text = shown.dataset?.text ?? title?.textContent;
  if (!text) { tip.style.display = "none"; return; }
  // The browser's own would come on top of this one.
  if (title) { shown.dataset.text = text; title.remove(); }
  tip.textContent = text;
  tip.style.display = "block";
  const right = window.innerWidth - tip.offsetWidth - 8, low = window.innerHeight - tip.offsetHeight - 8;
  tip.style.left = Math.max(8, Math.min(event.clientX + 14, right)) + "px";
  tip.style.top = Math.max(8, Math.min(event.clientY + 16, low)) + "px";
};
for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, show);
