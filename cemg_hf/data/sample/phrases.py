"""The sample shop's stock of phrases: product types, themes (what for) and makings (how produced). None mentions a look."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Kind:
    """How a product type is called and described."""

    department: str = field(metadata={"help": "Top-level category."})
    shelf: str = field(metadata={"help": "Second-level category, plural."})
    nouns: tuple[str, ...] = field(metadata={"help": "Names used in titles."})
    features: tuple[str, ...] = field(metadata={"help": "Sentences any product of the type could carry."})
    complements: tuple[str, ...] = field(metadata={"help": "Types that shoppers tend to buy next."})


@dataclass(frozen=True)
class Theme:
    """What a product is for."""

    shelf: str = field(metadata={"help": "Third-level category."})
    phrases: tuple[str, ...] = field(metadata={"help": "Completions of 'for …' in a title."})
    sentences: tuple[str, ...] = field(metadata={"help": "Sentences of the description; two are used."})


@dataclass(frozen=True)
class Making:
    """How a product is produced, and who does."""

    brands: tuple[str, ...] = field(metadata={"help": "Brands that produce this way."})
    adjectives: tuple[str, ...] = field(metadata={"help": "Words for the title."})
    sentences: tuple[str, ...] = field(metadata={"help": "Sentences of the description; one is used."})


KINDS: dict[str, Kind] = {
    "mug": Kind(
        "Kitchen",
        "Mugs",
        ("Mug", "Cup", "Big Mug"),
        (
            "The handle leaves room for three fingers and the rim is smooth to drink from.",
            "Holds 350 ml and fits under most machines.",
            "Keeps a hot drink hot and may go into the dishwasher.",
        ),
        ("teapot", "cushion"),
    ),
    "teapot": Kind(
        "Kitchen",
        "Teapots",
        ("Teapot", "Tea Pot", "Brewing Pot"),
        (
            "The spout pours without a drip and the lid stays put.",
            "Holds four cups and comes with a fine strainer.",
            "A wide opening makes it easy to fill and to rinse.",
        ),
        ("mug", "vase"),
    ),
    "vase": Kind(
        "Living",
        "Vases",
        ("Vase", "Flower Vase", "Table Vase"),
        (
            "A heavy foot keeps tall stems upright.",
            "Watertight, with a wide base that stands firmly.",
            "Room for a full bunch or a single branch.",
        ),
        ("planter", "lamp"),
    ),
    "bottle": Kind(
        "Kitchen",
        "Bottles",
        ("Bottle", "Drinking Bottle", "Flask"),
        (
            "The screw cap closes tightly, even upside down.",
            "Holds 600 ml and fits into a side pocket.",
            "A wide neck lets ice cubes in and a brush too.",
        ),
        ("backpack", "sneaker"),
    ),
    "lamp": Kind(
        "Living",
        "Lamps",
        ("Table Lamp", "Lamp", "Bedside Lamp"),
        (
            "The switch sits on the cord, within easy reach.",
            "Takes a standard bulb and gives a glare-free glow.",
            "The shade lifts off for dusting.",
        ),
        ("clock", "armchair"),
    ),
    "armchair": Kind(
        "Living",
        "Armchairs",
        ("Armchair", "Easy Chair", "Lounge Chair"),
        (
            "Deep seat, firm back, and arms at just the right height.",
            "The cover comes off for washing.",
            "Carries up to 130 kg and arrives fully assembled.",
        ),
        ("cushion", "lamp"),
    ),
    "cushion": Kind(
        "Living",
        "Cushions",
        ("Cushion", "Throw Pillow", "Seat Cushion"),
        (
            "The cover has a hidden zip and the filling keeps its loft.",
            "Plump enough to lean on for hours.",
            "Soft on both sides and washable at 40 degrees.",
        ),
        ("armchair", "vase"),
    ),
    "clock": Kind(
        "Living",
        "Clocks",
        ("Wall Clock", "Clock", "Quiet Clock"),
        ("The movement sweeps silently.", "Runs a year and a half on one battery.", "The large marks can be read from across the room."),
        ("mug", "lamp"),
    ),
    "planter": Kind(
        "Garden",
        "Potted Plants",
        ("Potted Plant", "Plant in a Pot", "House Plant"),
        (
            "Arrives rooted in its pot, with a saucer hidden inside.",
            "Asks for water once a week and little else.",
            "The pot has a drainage hole and a plug.",
        ),
        ("vase", "teapot"),
    ),
    "t-shirt": Kind(
        "Clothing",
        "Shirts",
        ("Shirt", "Tee", "Jersey Shirt"),
        (
            "Cut straight, with a seam that does not twist in the wash.",
            "Soft jersey, true to size.",
            "The collar keeps its shape after many washes.",
        ),
        ("cap", "sneaker"),
    ),
    "dress": Kind(
        "Clothing",
        "Dresses",
        ("Dress", "Day Dress", "Belted Dress"),
        (
            "A belt marks the waist and the skirt moves freely.",
            "Falls to the knee and has two side pockets.",
            "Fully lined, with a concealed zip.",
        ),
        ("tote", "umbrella"),
    ),
    "sneaker": Kind(
        "Shoes",
        "Sneakers",
        ("Sneakers", "Trainers", "Canvas Shoes"),
        ("The sole grips well and bends with the foot.", "A padded heel and a removable insole.", "Runs half a size large."),
        ("t-shirt", "bottle"),
    ),
    "cap": Kind(
        "Accessories",
        "Hats",
        ("Hat", "Headwear", "Weekend Hat"),
        ("Sits snugly without pressing.", "One size, adjustable from inside.", "Folds into a pocket and springs back."),
        ("backpack", "t-shirt"),
    ),
    "tote": Kind(
        "Bags",
        "Tote Bags",
        ("Tote Bag", "Shopper", "Carry-all"),
        ("The handles fit over a shoulder.", "An inner pocket keeps keys and phone apart.", "Stands upright when it is set down."),
        ("dress", "umbrella"),
    ),
    "backpack": Kind(
        "Bags",
        "Backpacks",
        ("Backpack", "Rucksack", "Day Pack"),
        (
            "Padded straps and a back panel that breathes.",
            "Holds 18 litres, with a sleeve for a tablet.",
            "A front pocket for the small things.",
        ),
        ("bottle", "cap"),
    ),
    "umbrella": Kind(
        "Accessories",
        "Umbrellas",
        ("Umbrella", "Rain Umbrella", "Stick Umbrella"),
        ("Opens at a push and survives a gust.", "The canopy dries within minutes.", "A curved handle hangs over an arm or a chair."),
        ("tote", "dress"),
    ),
}

THEMES: tuple[Theme, ...] = (
    Theme(
        "Camping",
        ("Camping Trips", "Campfire Evenings", "the Trail"),
        (
            "Made for nights in a tent and mornings by the campfire.",
            "Hikers pack it first when a trail calls.",
            "It shrugs off mud, sparks and a week in the wilderness.",
            "A companion for summits, forests and long hikes.",
            "Campers like that it needs no looking after outdoors.",
        ),
    ),
    Theme(
        "Home Office",
        ("the Home Office", "Desk and Study", "Working Days"),
        (
            "Made for the desk, for video calls and quiet deadlines.",
            "It brings order to a study and calm to a workday.",
            "Colleagues ask about it in every meeting.",
            "A small reward between two spreadsheets.",
            "Thought through for people who work from home.",
        ),
    ),
    Theme(
        "Children",
        ("Children", "the Playroom", "Kids and Families"),
        (
            "Made for small hands and big imaginations.",
            "It survives playtime, nursery school and birthday parties.",
            "Parents trust it, toddlers adore it.",
            "Part of bedtime stories from the first night.",
            "Tested by kids in three kindergartens.",
        ),
    ),
    Theme(
        "Weddings",
        ("Weddings", "Anniversaries", "the Bridal Table"),
        (
            "Made for weddings, engagements and anniversaries.",
            "Couples find it among the gifts and keep it for life.",
            "A lovely thank-you for bridesmaids and guests.",
            "It belongs to the ceremony and to the party after.",
            "Comes in a gift box with a ribbon and a card for the newly-weds.",
        ),
    ),
    Theme(
        "Seaside",
        ("the Seaside", "Beach Holidays", "Sailing Days"),
        (
            "Made for beach days, salt air and sand between the toes.",
            "Sailors keep one aboard and one in the harbour.",
            "It does not mind surf, sunscreen or a sudden tide.",
            "Smells faintly of summer holidays by the ocean.",
            "At home on the pier and in the beach hut.",
        ),
    ),
    Theme(
        "Wellness",
        ("Yoga and Calm", "Slow Mornings", "Mindful Evenings"),
        (
            "Made for yoga, breathing and a quiet half hour.",
            "It turns a corner into a retreat for meditation.",
            "Therapists recommend it for mindful routines.",
            "A ritual for body and soul after a restless day.",
            "Pairs with incense, stretching and silence.",
        ),
    ),
    Theme(
        "Baking",
        ("Coffee and Cake", "Bakers", "Sunday Baking"),
        (
            "Made for coffee mornings and the smell of fresh bread.",
            "Bakers wipe flour off it and carry on.",
            "It goes with espresso, sourdough and a slice of cake.",
            "A treat for everyone who reads recipes in bed.",
            "Spotted in pastry shops and roasteries.",
        ),
    ),
    Theme(
        "Music",
        ("Festivals", "Music Lovers", "Concert Nights"),
        (
            "Made for festivals, encores and dancing until late.",
            "Musicians take it on tour and into the rehearsal room.",
            "It goes with vinyl records and loud guitars.",
            "Fans queue for it at every concert.",
            "Keeps the rhythm from soundcheck to the last song.",
        ),
    ),
    Theme(
        "Gardening",
        ("Gardeners", "Allotment Days", "the Potting Shed"),
        (
            "Made for gardeners, seedlings and soil under the nails.",
            "It lives in the potting shed between spades and twine.",
            "Harvest after harvest it does its duty on the allotment.",
            "A present for everyone who talks to tomatoes.",
            "Bees, compost and April showers leave it unimpressed.",
        ),
    ),
    Theme(
        "Reading",
        ("Book Lovers", "the Reading Nook", "Library Afternoons"),
        (
            "Made for readers, novels and rainy library afternoons.",
            "It keeps you company until the last chapter.",
            "Book clubs choose it for long discussions.",
            "Librarians and poets swear by it.",
            "Goes with a paperback, a bookmark and no plans.",
        ),
    ),
    Theme(
        "Travel",
        ("Travellers", "City Breaks", "Train Journeys"),
        (
            "Made for airports, night trains and one more stamp in the passport.",
            "It fits into hand luggage and clears customs without questions.",
            "Globetrotters unpack it in every hotel.",
            "Commuters and tourists alike keep it close.",
            "At ease in any time zone, from hostel to embassy.",
        ),
    ),
    Theme(
        "Winter Sports",
        ("Ski Weekends", "Snowy Days", "the Chalet"),
        (
            "Made for ski lifts, snowfall and the way back to the chalet.",
            "Frost and ice do it no harm.",
            "Snowboarders warm up with it after the last run.",
            "It spends January by the fireplace and on the sledge.",
            "Tested on a glacier at minus twenty degrees.",
        ),
    ),
)

MAKINGS: tuple[Making, ...] = (
    Making(
        ("Renova", "Looply", "Second Round"),
        ("Recycled", "Upcycled"),
        (
            "Produced entirely from recycled waste and recyclable again.",
            "Upcycled from factory leftovers, so nothing goes to landfill.",
            "Every piece saves waste; the recycling rate is printed inside.",
        ),
    ),
    Making(
        ("Hand & Hearth", "Atelier Mirow", "Thimble Works"),
        ("Handmade", "Artisan"),
        (
            "Handmade by one artisan, who signs it.",
            "Small differences show that it was crafted by hand in a workshop.",
            "An artisan spends two days on every single one.",
        ),
    ),
    Making(
        ("Verdana Farm", "Pure Field", "Meadowkind"),
        ("Organic", "Vegan"),
        (
            "Certified organic and vegan, without synthetic chemicals.",
            "Organic farming supplies what it consists of.",
            "Vegan, hypoallergenic and grown without pesticides.",
        ),
    ),
    Making(
        ("Oldfield & Sons", "Granger", "Heritage Row"),
        ("Heritage", "Classic"),
        (
            "Built to a design from 1924 and guaranteed for thirty years.",
            "A classic that is repaired rather than replaced; spare parts are always in stock.",
            "Heritage quality that grandchildren will inherit.",
        ),
    ),
    Making(
        ("Voltano", "Nextly", "Orbit Lab"),
        ("Smart", "High-Tech"),
        (
            "Engineered with a smart nano finish from aerospace research.",
            "High-tech inside: a patented sensor-tested membrane.",
            "Developed in a laboratory and tested by engineers.",
        ),
    ),
)

CLOSINGS = (
    "Ships within two days.",
    "Returns are free for sixty days.",
    "One of the pieces our customers review most warmly.",
    "Comes in plastic-free packaging.",
    "Care instructions are enclosed.",
    "A limited run is made each season.",
    "Weighs less than you would expect.",
    "Also a thoughtful present.",
)
TITLES = (
    "{brand} {adjective} {noun} for {phrase}",
    "{adjective} {noun} for {phrase}",
    "{noun} for {phrase}, {adjective} by {brand}",
    "{brand} {noun} – {adjective}, for {phrase}",
)
