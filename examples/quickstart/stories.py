"""Little stories: one hero, a friend or two, a place, some weather, and a small thing that goes well in the end.

A plot is a list of paragraphs in the notation of grammar.py; the slots below stay the same through a story, so that
names, pronouns, weather and things agree from the first sentence to the last.
"""

from grammar import say, with_article

HEROES = [
    ("mouse", "small", "squeaked"), ("hedgehog", "round", "snuffled"), ("rabbit", "quick", "said"),
    ("frog", "green", "croaked"), ("duck", "white", "quacked"), ("squirrel", "red", "chattered"),
    ("mole", "sleepy", "mumbled"), ("fox", "clever", "said"), ("sparrow", "brown", "chirped"),
    ("snail", "slow", "whispered"), ("badger", "grey", "grumbled"), ("otter", "merry", "laughed"),
    ("bee", "busy", "hummed"), ("goat", "stubborn", "said"), ("owl", "old", "hooted"),
    ("kitten", "curious", "mewed"), ("puppy", "playful", "barked"), ("turtle", "patient", "said"),
]  # fmt: skip
NAMES = {
    "she": "Mina Tilly Rosa Nell Poppy Lotta Wanda Ivy Hazel Bella Dora Fern Greta Olive Pearl Suki".split(),
    "he": "Pip Barney Otto Finn Hugo Milo Toby Rufus Jasper Ned Oskar Leo Bruno Emil Sam Theo".split(),
}
PRONOUNS = {"she": ("she", "her", "her", "herself"), "he": ("he", "him", "his", "himself")}
# place, in or on it, where something can hide there, what is heard there
PLACES = [
    ("garden", "in", ["under the cabbage leaves", "behind the watering can", "between the bean poles"], "bees in the flowers"),
    ("meadow", "in", ["in the tall grass", "under a clover leaf", "beside the flat stone"], "crickets in the grass"),
    ("forest", "in", ["under the fallen leaves", "in a hollow log", "between the roots of the oak"], "wind in the branches"),
    ("orchard", "in", ["under the apple tree", "in an empty basket", "behind the wooden ladder"], "birds in the apple trees"),
    ("farmyard", "in", ["behind the barn door", "in a heap of straw", "under the old cart"], "hens by the gate"),
    ("river bank", "on", ["among the reeds", "under the little bridge", "behind a mossy rock"], "water over the stones"),
    ("hillside", "on", ["behind the stone wall", "under a thorn bush", "in a nest of moss"], "sheep on the slope"),
    ("beach", "on", ["behind the dune", "in an upturned boat", "under a heap of seaweed"], "waves on the sand"),
    ("village", "in", ["behind the bakery", "under the market bench", "beside the well"], "bell in the little tower"),
]  # fmt: skip
# season, sky, what it does, what it turns into, what that makes of a place
WEATHERS = [
    ("spring", "grey and soft", "a light rain fell", "the sun came out and made a rainbow", "wet"),
    ("spring", "bright and fresh", "a warm wind blew", "the sky turned rosy and mild", "green"),
    ("spring", "full of small clouds", "the sun came and went", "the clouds drifted away", "bright"),
    ("summer", "blue and hot", "the air stood still", "a cool breeze came up from the south", "dusty"),
    ("summer", "clear and golden", "the sun shone all day", "the first star came out", "warm"),
    ("autumn", "pale and windy", "leaves danced in the air", "the wind lay down to sleep", "windy"),
    ("autumn", "covered with mist", "everything dripped", "the mist lifted and the hills stood clear", "quiet"),
    ("winter", "white and still", "snow fell in big flakes", "the moon shone on the snow", "white"),
    ("winter", "clear and icy", "frost sparkled everywhere", "a thaw came in the night", "cold"),
]
STORMS = [
    ("spring", "black and yellow", "hail jumped on the path", "the sun came out and made a rainbow", "wet"),
    ("summer", "dark in the west", "thunder rolled far away", "the air was cool and clean", "hot"),
    ("autumn", "wild and torn", "the wind bent the trees", "the wind lay down to sleep", "windy"),
    ("winter", "heavy with snow", "the first flakes flew sideways", "the moon shone on the snow", "cold"),
]
THINGS = [
    ("kite", "red"), ("button", "shiny"), ("bell", "tiny"), ("scarf", "blue"), ("acorn", "golden"), ("drum", "little"),
    ("hat", "yellow"), ("key", "silver"), ("marble", "green"), ("feather", "white"), ("lantern", "old"),
    ("whistle", "wooden"), ("umbrella", "striped"), ("spoon", "copper"), ("ribbon", "purple"), ("map", "folded"),
]  # fmt: skip
PLANTS = [
    ("sunflower", "sunflower seeds", "tall"), ("pumpkin", "pumpkin soup", "round"), ("carrot", "carrot cake", "long"),
    ("strawberry", "strawberry jam", "sweet"), ("bean", "bean stew", "green"), ("tomato", "tomato bread", "red"),
    ("pea", "pea soup", "plump"), ("turnip", "turnip pie", "heavy"), ("radish", "radish salad", "crisp"),
]  # fmt: skip
FOODS = ["an apple pie", "a ripe pear", "a pot of honey", "a loaf of bread", "a big cheese", "a bowl of berries", "a plum cake",
         "a bag of nuts", "a warm bun", "a slice of melon", "a plate of pancakes", "a roast chestnut"]  # fmt: skip
COLOURS = ["red", "blue", "yellow", "white", "green", "orange"]
NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
BUILDS = [
    ("raft", "float across the pond", "tipped over", "tie the sticks with longer grass"),
    ("bridge", "cross the stream", "fell into the water", "put the heavy stones at the bottom"),
    ("tree house", "see the whole valley", "slid off its branch", "choose a fork with three strong arms"),
    ("swing", "fly up to the leaves", "came down with a bump", "use two ropes of the same length"),
    ("wagon", "bring the apples home", "lost a wheel", "make the wheels from the same log"),
    ("windmill", "grind the corn", "would not turn", "face it to the west wind"),
    ("boat", "sail to the island", "began to leak", "close the holes with wax"),
]
OPENINGS = [
    "[once there was|there once lived|{at_place} lived] {a_hero} [called|named|whose name was] {name}. "
    "[every morning|on most days|after breakfast] {they} [walked through|looked around|ran once around] the {place} and listened to the {sound}.",
    "{name} was {a_hero}. {they} lived [near|beside|at the edge of] the {place}, [where one could hear|and loved] the {sound}.",
    "it was [{a_season} morning|{a_season} day|early in {season}], and the sky was {sky}. {name}, {a_hero}, [looked out of the door|sat {at_place}|woke up and yawned].",
    "in {season} the {place} was {feel}. {a_hero} called {name} [lived there|had a house there|made a home there], [with a blue door and one small window|far from the road|and everybody liked {them}|and knew every path and every stone].",
]  # fmt: skip
CLOSINGS = [
    "[in the evening|when the day was over|at the end of the day] {turn}. {name} [smiled|was tired and happy|lay down in bed] and thought: {lesson}.",
    "then {turn}, and [everyone|the two friends|{name} and {friend}] [went home|sang a song|sat together until it was dark]. [and so {name} learned that|from that day on {name} knew that] {lesson}.",
    '"{lesson}," said {friend}. {name} [nodded|laughed|thought so too]. [soon|after supper] {turn}.',
    "{turn}. {name} slept well that night, and {friend} did too.",
]

LOST = [
    "{name} had {a_thing}. {they} took it everywhere. but [one day|that day|this morning] the {thing} was [gone|not there|nowhere to be seen]. [\"where is my {thing}?\" {voice} {name}.|{name} [looked and looked|searched the whole house|turned every pillow] and felt sad.]",
    "[so {name}|{name}|at last {name}] asked {friend} the {friend_kind}. \"have you seen my {thing}? it is {thing_look}.\" \"no,\" {friend_voice} {friend}, \"but [I will help you look|two can look better than one|we can look together].\"",
    "[first they looked|they began to look] {spot}. [there was only a beetle|they found an old shoe|nothing was there but dust]. [outside|meanwhile] {rain}. then they looked {spot2}. [there it was!|and there lay the {thing}!|something {thing_look} was there. it was the {thing}!]",
    "[\"thank you, {friend},\" said {name}.|{name} jumped for joy and hugged {friend}.] [{they} let {friend} play with it all afternoon.|\"next time I will keep it in my pocket,\" {they} said.|from now on {they} hung the {thing} on a hook by the door.]",
]  # fmt: skip
GROWING = [
    "[{name} found a {plant} seed {spot} and showed it to {friend} the {friend_kind}.|{friend} the {friend_kind} gave {name} a {plant} seed.] \"[what shall I do with it?|it is so small,\" {they} said, \"will it grow?]\" \"[put it in the earth and wait|it needs earth, water and time|be patient],\" {friend_voice} {friend}.",
    "so {name} [dug|made] a little hole and put the seed in. [every day {they} gave it water.|{they} sang to it in the evening.|{they} built a small fence around it.] on the first day [nothing happened|{rain}]. on the second day nothing happened. [on the third day|after a week] a [tiny|pale|little] green leaf came out of the ground.",
    "[the leaf became two leaves, and the two became ten.|it grew and grew.|each day it was a little bigger.] [a hungry caterpillar came by, and {name} gave it a dandelion instead.|once the wind bent it, and {name} tied it to a stick.|when it was dry, {friend} helped to carry water.]",
    "at last there was a {plant}, so {plant_look} that {name} [could not believe it|had to laugh|called everyone]. {they} [shared it with|made {dish} for|invited] {friend} and {friend2} the {friend2_kind}. [nothing ever tasted so good.|\"I only waited,\" {they} said, \"the rain did the rest.\"|they ate until they were full.]",
]  # fmt: skip
STORM = [
    "the sky was {sky}, and {rain}. \"[I do not like this|a storm is coming|listen to that],\" {voice} {name}, and [ran home|shut the window|closed the door].",
    "[soon there was a knock at the door.|knock, knock!] it was {friend} the {friend_kind}. \"[may I come in?|my house is full of water,|the wind took my roof,]\" {friend_voice} {friend}. \"[come in|of course|there is room for two],\" said {name}. [then {friend2} the {friend2_kind} came too, with wet feet.|a little later {friend2} the {friend2_kind} knocked as well.]",
    "[it was tight, but it was warm.|the house was small, but nobody minded.] {name} [made tea|lit a candle|made three parts of {food}], {friend} told a story about {a_thing}, and {friend2} [fell asleep|laughed at every word|asked for another one]. [outside it roared and rattled.|the wind howled around the house.]",
    "in the morning [they looked out|everything was quiet|they opened the door]. [the {place} was covered with branches.|there were puddles everywhere.] \"[now we help you|let us mend your roof|many hands make it easy],\" said {name} to {friend}, and [by noon it was done|they worked until noon|so they did].",
]  # fmt: skip
SHARING = [
    "[one afternoon|that day] {name} found {food} {spot}. [\"what luck!\" {they} said.|{they} could hardly believe it.] just then {friend} the {friend_kind} came along. \"[I saw it first|I smelled it from far away|that looks good],\" {friend_voice} {friend}.",
    "[they both pulled at it.|neither of them wanted to give way.|they looked at each other for a long time.] {rain}. [\"it is mine!\" \"no, mine!\"|nobody said a word.] Then {friend2} the {friend2_kind} came by and asked what was the matter.",
    "\"[one of you cuts, and the other one chooses,|there is enough for all of us,|why not eat it together?]\" {friend2_voice} {friend2}. [they thought about it.|{name} scratched {their} head.|{friend} looked at the ground.] \"[that is fair|that is a good idea|all right],\" they said.",
    "so they [sat down|spread a cloth|made a fire] {spot2} and ate together. [it tasted better than it would have tasted alone.|they gave {friend2} the biggest piece.|even the ants got some crumbs.]",
]  # fmt: skip
NEWCOMER = [
    "a new neighbour had come to the {place}. it was {a_friend} called {friend}, and {friend} was very shy. [{friend_they} hid {spot} all day.|{friend_they} never said a word.|{friend_they} only came out at night.]",
    "{name} [wanted to be friends|thought about it|waited for three days]. {they} [put {food} before the door|hung {a_thing} on the fence|sat down outside and hummed a song]. the next morning [it was gone, and a flower lay there instead|a small face looked out|the door was open a little].",
    "\"[good morning|hello],\" {voice} {name}. \"I am {name}. [do you like the rain?|do you want to see the river?|shall we play?]\" {friend} [blinked|took one small step|looked up]. \"[yes|I would like that|only if you come with me],\" {friend_voice} {friend}.",
    "[they played hide and seek. {friend} was very good at it and hid {spot2}.|they walked along the path and counted snails.|{name} showed {friend} every corner of the {place}.] {rain}, but they did not mind. [after that they met every day.|soon {friend} was not shy any more.|{friend} even told a joke.]",
]  # fmt: skip
BUILDING = [
    "{name} wanted to {aim}. \"I will build a {build},\" {they} said. {they} [took some sticks and began|collected wood {spot}|worked all morning]. [but the first {build}|but when it was ready, it] {failure}. [\"oh no!\" {voice} {name}.|{name} sat down and sighed.]",
    "{friend} the {friend_kind} [had watched from a branch|was passing by|came to look]. \"[do not give up|that was a good start|I made the same mistake once],\" {friend_voice} {friend}. \"[you should|next time,|perhaps you could] {advice}.\"",
    "{name} [tried again|began once more|did as {friend} said], and {friend} helped. [{rain}, but they did not stop.|it took the whole day.|they counted to three and pulled.] this time [it held|it worked|the {build} stood firm].",
    "now {name} could {aim}. {they} [called|took along|thanked] {friend}, [who laughed out loud|and they were very proud|and they waved to everyone they met]. [\"the second one is always better,\" said {name}.|they painted it {colour}.|{friend2} the {friend2_kind} wanted to have one too.]",
]  # fmt: skip
GIFT = [
    "[tomorrow was the birthday of {friend} the {friend_kind}.|{friend} the {friend_kind} was ill and had to stay in bed.] {name} wanted to bring something. \"but what?\" {they} asked. \"{friend} already has {a_thing}.\"",
    "{they} went to {friend2} the {friend2_kind} for advice. \"[make something yourself,|what does {friend} love most?|bring something from the {place},]\" {friend2_voice} {friend2}. so {name} [wrapped up {food}|picked {colour} flowers {spot}|made up a song about the {sound}].",
    "[the way was long,|it was far to go,] and {rain}. {name} [slipped on the path and nearly fell|walked slowly and carefully|stopped twice to rest]. [at the bridge {they} met a beetle who could not get across, and {they} carried it.|{they} held the gift close to keep it dry.]",
    "\"[come in, come in,|what a surprise,|is that for me?]\" {friend_voice} {friend}. [{friend_they} was so glad that {friend_they} danced.|nobody had ever given {friend} anything so nice.|they shared it at once.] \"[the best thing is that you came|I feel better already|you are a good friend],\" said {friend}.",
]  # fmt: skip
# small things that may happen in any story; the slots that end in `x` are drawn for each of them anew
ASIDES = [
    "on the way {they} met {a_strangerx} who was [looking for|carrying|painting|mending] {a_thingx}. \"[good day|hello there|fine weather today],\" said the {strangerx}. [and on {they} went.|\"the same to you,\" said {name}.|{name} waved.]",
    "{numberx} [swallows|butterflies|ducklings|ants] came by, one behind the other. [{name} counted them twice.|the last one was in a hurry.|nobody knew where they were going.]",
    "{name} was hungry and ate {foodx}. [then {they} felt better.|a few crumbs were left for the sparrows.|it was gone much too soon.]",
    "[far away|somewhere|behind the hill] {a_strangerx} was singing. {name} [knew the song and sang along|stopped to listen|tried to whistle it].",
    "{a_colourx} leaf floated on a puddle like a ship. {name} blew, and it sailed [to the other side|around a stone|into a small harbour of mud].",
    "{a_strangerx} had hung {numberx} {colourx} socks on a line. [one of them fell down, and {name} picked it up.|they danced in the wind.|\"so many feet,\" thought {name}.]",
    "the church bell rang {numberx} times. [\"already so late,\" said {name}.|it was time for a rest.|{name} walked a little faster.]",
    "by the path stood {a_colourx} {plantx}. [it smelled of honey.|a ladybird was asleep on it.|{name} was careful not to step on it.]",
    "there was a new sign at the crossing. it said: [\"this way to the pond\"|\"beware of the goose\"|\"fresh eggs today\"|\"please close the gate\"]. [{name} read it aloud.|somebody had painted {a_thingx} under it.]",
    "for a moment {name} thought of {a_thingx}, and of {foodx}. [but there was no time for that.|then {they} had to smile.|what a strange thought that was!]",
    "the ground was soft, and {name} saw the tracks of {a_strangerx}. [they led to the water and back.|there were {numberx} of them.|they went round and round a tree.]",
    "{a_strangerx} and {a_strangery} were playing cards on {a_colourx} blanket. \"[who is winning|may I watch|is it hard]?\" asked {name}. \"[I am|nobody yet|sit down],\" said the {strangerx}.",
]  # fmt: skip

# paragraphs, title, weathers, what is learned
PLOTS = [
    (LOST, "{name} and the {thing_look} {thing}", WEATHERS,
     ["two can look better than one", "it is good to ask", "things like to hide where nobody looks"]),
    (GROWING, "{name} and the {plant_look} {plant}", WEATHERS,
     ["waiting is hard but worth it", "slow steps go far too", "big things begin small"]),
    (STORM, "[a house for three|{name} and the storm|a knock at the door]", STORMS,
     ["every storm has an end", "there is room in a small house", "work is half as long in good company"]),
    (SHARING, "[{name} finds {food}|one cuts, one chooses|enough for three]", WEATHERS,
     ["sharing makes little go far", "a quarrel fills nobody", "food tastes better at a full table"]),
    (NEWCOMER, "[the new neighbour|{name} and {friend}|{friend} the shy {friend_kind}]", WEATHERS,
     ["a friend needs time", "kind words cost nothing", "the quiet ones have much to tell"]),
    (BUILDING, "{name} builds a {build}", WEATHERS,
     ["mistakes are good teachers", "the second try is often the best", "good advice is worth a day's work"]),
    (GIFT, "[a gift for {friend}|{name} brings a gift|{name} visits {friend}]", WEATHERS,
     ["the best gifts are made at home", "a visit is a gift too", "giving makes two people glad"]),
]  # fmt: skip


def animal(dice, kind, taken):
    """Name and pronouns of one animal; names differ within a story."""
    gender = dice.pick(["she", "he"])
    name = dice.pick([n for n in NAMES[gender] if n not in taken])
    taken.append(name)
    return {"kind": kind[0], "look": kind[1], "voice": kind[2], "name": name, "they": PRONOUNS[gender][0],
            "them": PRONOUNS[gender][1], "their": PRONOUNS[gender][2]}  # fmt: skip


def slots(dice, weathers, lessons):
    """Everything that stays the same through one story."""
    taken = []
    hero, friend, friend2 = (animal(dice, kind, taken) for kind in dice.some(HEROES, 3))
    place, preposition, hiding, sound = dice.pick(PLACES)
    spot, spot2 = dice.some(hiding, 2)
    season, sky, rain, turn, feel = dice.pick(weathers)
    thing, thing_look = dice.pick(THINGS)
    plant, dish, plant_look = dice.pick(PLANTS)
    build, aim, failure, advice = dice.pick(BUILDS)
    return {
        "name": hero["name"], "they": hero["they"], "them": hero["them"], "their": hero["their"],
        "voice": hero["voice"], "a_hero": with_article(f"{hero['look']} {hero['kind']}"),
        "friend": friend["name"], "friend_kind": friend["kind"], "friend_voice": friend["voice"],
        "friend_they": friend["they"], "a_friend": with_article(f"{friend['look']} {friend['kind']}"),
        "friend2": friend2["name"], "friend2_kind": friend2["kind"], "friend2_voice": friend2["voice"],
        "place": place, "at_place": f"{preposition} the {place}", "spot": spot, "spot2": spot2, "sound": sound,
        "season": season, "a_season": with_article(season), "sky": sky, "rain": rain, "turn": turn, "feel": feel,
        "thing": thing, "thing_look": thing_look, "a_thing": with_article(f"{thing_look} {thing}"),
        "plant": plant, "dish": dish, "plant_look": plant_look, "food": dice.pick(FOODS),
        "build": build, "aim": aim, "failure": failure, "advice": advice,
        "colour": dice.pick(COLOURS), "lesson": dice.pick(lessons),
    }  # fmt: skip


def passing(dice):
    """What an aside adds to the slots of its story."""
    (kind, look, _), (kind2, look2, _) = dice.some(HEROES, 2)
    thing, thing_look = dice.pick(THINGS)
    colour = dice.pick(COLOURS)
    return {
        "strangerx": kind, "a_strangerx": with_article(f"{look} {kind}"), "a_strangery": with_article(f"{look2} {kind2}"),
        "a_thingx": with_article(f"{thing_look} {thing}"), "colourx": colour, "a_colourx": with_article(colour), "foodx": dice.pick(FOODS),
        "numberx": dice.pick(NUMBERS), "plantx": dice.pick(["poppy", "daisy", "bluebell", "rose", "tulip", "thistle"]),
    }  # fmt: skip


def story(dice):
    """A title, an empty line, and six to eight short paragraphs."""
    plot, title, weathers, lessons = dice.pick(PLOTS)
    s = slots(dice, weathers, lessons)
    paragraphs = [say(p, s, dice) for p in [dice.pick(OPENINGS), *plot, dice.pick(CLOSINGS)]]
    for aside in dice.some(ASIDES, dice.below(3)):
        at = 1 + dice.below(len(paragraphs) - 1)
        paragraphs.insert(at, say(aside, s | passing(dice), dice))
    return say(title, s, dice) + "\n\n" + "\n".join(paragraphs)
