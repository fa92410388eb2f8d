"""A ship's log: every entry has the same six lines, and what they say hangs together.

The sea follows the wind and the sails follow both; the position follows the course; the water in the casks goes down
each day and is filled in port.
"""

from grammar import say

SHIPS = [("Grey Heron", 14), ("Patience", 22), ("Northern Star", 31), ("Little Anna", 9), ("Tern", 12), ("Good Hope", 18)]
PORTS = ["Saltwick", "Port Amber", "Lorn Bay", "Kettle Harbour", "Three Rocks", "Mersing", "Olderness", "White Quay"]
MONTHS = [("March", 31), ("April", 30), ("May", 31), ("June", 30), ("July", 31), ("August", 31), ("September", 30)]
WINDS = ["N", "NE", "E", "SE", "S", "SW", "W", "NW"]
STEPS = {"N": (1, 0), "NE": (1, -1), "E": (0, -1), "SE": (-1, -1), "S": (-1, 0), "SW": (-1, 1), "W": (0, 1), "NW": (1, 1)}
# by wind force 0..9: the sea and the sails
SEAS = ["glassy", "calm", "smooth", "slight", "slight", "moderate", "rough", "very rough", "high", "very high"]
SAILS = [
    "all sails hanging", "all plain sail", "all plain sail", "all plain sail and staysails", "topgallants set",
    "topgallants furled", "one reef in the topsails", "two reefs in the topsails", "close-reefed topsails",
    "storm staysail only",
]  # fmt: skip
CALM = [
    "Crew [mending nets|scraping the deck|airing the bedding|caulking the boat]. [No steerage way.|Drifting slowly.]",
    "[Dolphins|Two whales|A turtle|Flying fish] seen [to port|to starboard|close under the bow].",
    "[Heard|Held] [music on deck|the reading of the rules|a swimming lesson] in the evening.",
]
FAIR = [
    "Spoke the [brig|bark|schooner] {other} out of {port2}, {days} days at sea. [All well on board.|She asked for {want}.]",
    "[Sighted land|Sighted a light|Sighted a sail] bearing {bearing} at [dawn|noon|dusk].",
    "Carpenter [mended the pump|made a new oar|repaired the rail]. Sailmaker at work on the [jib|spanker|fore topsail].",
    "Crew at [small arms|the pumps|boat drill|sail drill]. [One man|The cook|The boy] [sick|with a bad tooth|back on duty].",
]
FOUL = [
    "Shipped [much water|a heavy sea] over the [bow|quarter]. Pumps manned [every watch|twice a watch|all night].",
    "Lost [the jib boom|a hencoop|one boat|the fore topsail]. [No man hurt.|One man hurt, not badly.]",
    "[Lifelines rigged.|Hatches battened down.] [Galley fire out, cold food for all.|Two men at the wheel.]",
]


def bounded(value, low, high):
    return max(low, min(high, value))


def remark(dice, force, slots):
    kinds = CALM if force <= 2 else FOUL if force >= 7 else FAIR
    return " ".join(say(k, slots, dice) for k in dice.some(kinds, 1 + dice.chance(40)))


def miles(dice, force):
    """What a day's run can be in this wind."""
    return dice.below(8) if force == 0 else bounded(18 * force + dice.below(30), 10, 190) - (60 if force > 7 else 0)


def voyage(dice):
    """The entries of one voyage, day by day, from one port to another."""
    ship, crew = dice.pick(SHIPS)
    start, end, other_port = dice.some(PORTS, 3)
    month, day = dice.below(len(MONTHS)), 1 + dice.below(28)
    lat, lon, water = 30 + dice.below(25), 10 + dice.below(40), 90 + dice.below(40)
    course, wind, force, glass = dice.pick(WINDS), dice.below(8), 2 + dice.below(4), 1010 + dice.below(15)
    length = 6 + dice.below(9)
    for n in range(length + 1):
        where = f"at {start}" if n == 0 else f"at {end}" if n == length else f"{lat} N {lon:02} W"
        run = 0 if n == 0 else miles(dice, force)
        slots = {"other": dice.pick([s for s, _ in SHIPS if s != ship]), "port2": other_port,
                 "days": 3 + dice.below(40), "want": dice.pick(["water", "bread", "the time", "news"]),
                 "bearing": dice.pick(WINDS)}  # fmt: skip
        if n == 0:
            text = f"Took in water and stores. Left {start} for {end} with {crew} hands."
        elif n == length:
            text = f"Anchored at {end} in {5 + dice.below(9)} fathoms. {crew} hands, all told."
        else:
            text = remark(dice, force, slots)
        yield (
            f"Log of the {ship}, {day} {MONTHS[month][0]}\nPosition: {where}. Course {course}. Run {run} miles.\n"
            f"Wind: {WINDS[wind]} {force}. Sea: {SEAS[force]}. Glass: {glass}.\n"
            f"Sails: {SAILS[force]}.\nWater: {water} casks.\nRemarks: {text}"
        )
        step = STEPS[course]
        moved = run >= 60
        lat, lon = bounded(lat + step[0] * moved, 20, 60), bounded(lon + step[1] * moved, 1, 70)
        change = dice.below(5) - 2
        glass, force = bounded(glass - 4 * change, 970, 1040), bounded(force + change, 0, 9)
        wind = (wind + dice.below(3) - 1) % 8
        water -= 1 + dice.below(3)
        day += 1
        if day > MONTHS[month][1]:
            day, month = 1, (month + 1) % len(MONTHS)


def voyages(dice):
    while True:
        yield from voyage(dice)
