"""The words of the demo shop: what it sells, how its styles sound, who makes it, and how people ask for it.

Only tables, each in a notation that is explained above it; `synthetic` reads them and explains the shop.
"""

# The assortment, in one notation. A department starts with `#`. A product type is: name / plural / usual
# price / what people buy next, best first; one axis of sizes; materials (`undyed` if it has no colours);
# uses, which follow the word "for"; and features as `phrase | sentence | need`, the need being how somebody
# asks for it without naming the product. Features that would contradict each other are neighbours in the
# table, since no item has two neighbours. An indented line continues the one before it.
ASSORTMENT = """
# Camping
tent / tents / 165 / sleeping mat, sleeping bag, lantern
capacity: one-person, two-person, three-person, five-person
material: ripstop nylon, cotton canvas, recycled polyester, polycotton
use: weekend camps, windy pitches, long summer tours, festival fields, back-garden nights
- twin porches | Two porches keep muddy boots and wet dogs away from the beds.
  | leave muddy boots outside overnight
- blackout inner | The dark inner lets late sleepers ignore a June sunrise.
  | sleep in when it gets light at four
- colour-coded poles | Each pole matches its sleeve, so it goes up in six minutes.
  | put up a shelter alone in minutes
- star window | A mesh panel in the roof opens onto the night sky. | watch the stars from bed on a trip
- storm guys | Eight reflective guy lines hold it down when the forecast was wrong.
  | shelter that stands in a gale
sleeping bag / sleeping bags / 95 / sleeping mat, tent, insulated flask
season: summer, three-season, winter
material: duck down, hollow fibre, recycled fleece, brushed cotton
use: frosty nights, hostel bunks, camper vans, nights under the stars, children's sleepovers
- draught collar | A padded collar shuts the cold out around the neck. | cold neck at night when camping
- two-way zip | The zip opens from the bottom too, for feet that run hot.
  | feet get too warm at night outdoors
- roomy footbox | There is space for big feet and tomorrow's socks. | space for big feet on cold nights
- compression sack | The sack it comes in squeezes it down to the size of a loaf.
  | warm bedding that packs tiny
- hidden pocket | A pocket at the chest keeps a phone warm and its battery alive.
  | keep my phone warm in bed at camp
sleeping mat / sleeping mats / 60 / sleeping bag, lantern, camp stove
length: short, regular, extra-long
material: recycled foam, recycled polyester, brushed nylon, natural rubber
use: stony ground, light packs, side sleepers, spare beds, cold pitches
- self-inflating core | Open the valve, put the kettle on, and find it full.
  | bed that fills itself with air outdoors
- folding panels | The panels fold flat like a map and unfold as quickly.
  | something soft to sit on that folds flat
- raised edges | Slightly higher sides stop restless sleepers from rolling off.
  | stop rolling off at night in camp
- heat mirror | A reflective layer sends body heat back where it came from.
  | ground feels freezing when I lie down
- pillow wedge | A raised end does away with the rolled-up jumper under the head. | no room to pack a pillow
camp stove / camp stoves / 55 / insulated flask, lantern, frying pan
burners: single-burner, twin-burner
undyed: stainless steel, titanium, cast aluminium, brass
use: early coffee, one-pot suppers, cliff-top breakfasts, lay-by lunches, slow camp stews
- wind shield | Folding walls guard the flame, so it boils in a stiff breeze.
  | boil water outdoors when it is windy
- folding legs | The legs tuck away and the whole thing slips into a mug.
  | cook on the trail with pocket-size kit
- simmer valve | The fine valve turns right down for eggs, rice and porridge.
  | cook porridge outside without burning it
- twig chamber | It burns twigs and pine cones instead of bottled gas. | cook outdoors without buying gas
- push igniter | One click lights it, even with cold wet thumbs. | light a flame with wet hands and no matches
lantern / lanterns / 38 / sleeping bag, camp stove, candle
brightness: soft-glow, 200-lumen, 500-lumen
material: powder-coated steel, bamboo, frosted glass, recycled plastic
use: late card games, supper in the open, power cuts, reading in the tent, dark garden paths
- solar lid | A solar panel in the lid tops it up while you walk. | light for a week without mains power
- dimmer dial | The dial goes from reading light down to a mere glimmer.
  | gentle light that will not wake the baby
- carry hook | A folding hook hangs it from a branch or a ridge pole. | light to hang over the picnic table
- candle flicker | The flicker setting looks like a flame and burns nothing.
  | cosy flame effect that is safe in a tent
- phone socket | A socket in the base gives a tired phone another day. | charge a phone where there is no plug

# Walking
rucksack / rucksacks / 85 / insulated flask, rain jacket, walking poles
volume: 12-litre, 20-litre, 28-litre, 45-litre
material: waxed canvas, ripstop nylon, recycled polyester, full-grain leather, cotton canvas
use: day walks, hut-to-hut tours, the train to work, overnight trips, damp hills
- roll top | The roll top shuts out rain and swallows one jumper more. | keep my things dry on a rainy commute
- padded hip belt | A broad belt moves the load from the shoulders to the hips.
  | carry heavy kit without sore shoulders
- laptop sleeve | A padded sleeve holds a laptop on Monday and a map on Saturday.
  | take my computer to work and the hills
- mesh back panel | Air moves behind the mesh, so the shirt stays dry. | sweaty back when I hike in summer
- bottle pockets | Deep side pockets can be reached without taking it off. | reach a drink while walking
insulated flask / insulated flasks / 32 / mug, rucksack, camp stove
capacity: 350 ml, 500 ml, 750 ml, 1 litre
material: brushed steel, enamelled steel, powder-coated steel, titanium
use: winter walks, cold platforms, early fishing, the school run, picnics in March
- wide mouth | The opening takes soup, porridge and a proper spoon. | keep soup hot on a long walk
- cup lid | The lid unscrews into a cup, so nobody waits for a turn. | share hot tea on a hike
- leakproof stopper | The stopper stays shut upside down in a full bag.
  | hot drink that will not spill in my bag
- tea strainer | A fine basket under the lid brews loose leaves on the way. | brew loose leaves on the train
- carry loop | A loop on the lid clips to a strap or hangs from a finger. | clip a hot drink to my pack
walking boots / walking boots / 140 / walking poles, rain jacket, rucksack
fit: narrow-fit, standard-fit, wide-fit
material: full-grain leather, waxed suede, recycled mesh, nubuck leather
use: stony paths, wet moorland, long distances, muddy dog walks, the first hill of the year
- deep lugs | Deep lugs bite into wet grass and let the mud drop off. | stop slipping on wet grass
- waterproof lining | A breathing membrane keeps the bog on the outside. | dry feet in boggy country
- padded collar | A soft collar holds the ankle and spares it the blisters. | hikes without blistered ankles
- cork footbed | The cork footbed takes the shape of the foot within a week.
  | tired feet after a whole day on the trail
- speed hooks | The open hooks lace up fast, even in thick gloves. | lace up quickly with cold fingers
rain jacket / rain jackets / 120 / walking boots, rucksack, walking poles
size: small, medium, large, extra-large
material: waxed cotton, recycled polyester, ripstop nylon, rubberized cotton
use: changeable days, coastal paths, wet commutes, dog walks, sideways drizzle
- storm hood | The stiffened hood turns with the head and stays up in wind. | my hood always blows off
- pit zips | Zips under the arms let out steam on the climb. | stay dry uphill without overheating
- map pocket | A dry chest pocket takes a folded map or a paperback. | keep the map dry in a downpour
- pack-away pocket | It folds into its own pocket and weighs less than an apple.
  | rain cover light enough to forget
- dropped back | A longer back keeps the seat of your trousers dry. | dry bottom on wet benches and bicycles
walking poles / walking poles / 58 / walking boots, insulated flask, rain jacket
folding: two-section, three-section, four-section
undyed: carbon fibre, aluminium, hazel wood, ash wood
use: steep descents, river crossings, sore knees, snowy tracks, long ridge days
- cork grips | Cork grips stay dry in warm hands and warm in cold ones. | sweaty palms on long climbs
- sprung tips | A spring in the shaft takes the jolt out of every step down. | knees hurt coming downhill
- flick locks | The flick locks set the length with one gloved finger. | adjust height with gloves on
- snow baskets | Wide baskets come in the bag for the first deep snow. | sink less on winter trails
- rubber feet | The rubber feet go quietly on tarmac and stone. | steady support on pavements

# Kitchen
frying pan / frying pans / 48 / chopping board, apron, casserole
diameter: 20 cm, 24 cm, 28 cm, 32 cm
undyed: cast iron, carbon steel, forged iron, blue steel
use: Sunday pancakes, crisp potatoes, quick omelettes, searing steaks, open fires
- pouring lips | A lip on each side pours off hot fat without a dribble. | drain hot fat without the mess
- long handle | The long handle stays cool well away from the flame. | fry over a fire without burning my hand
- pre-seasoned surface | It comes seasoned with linseed oil and ready for eggs.
  | eggs always stick when I cook
- helper handle | A second handle helps when supper is a heavy one. | lift a heavy supper with two hands
- flat base | The thick flat base sits square on an induction hob. | sear steak on induction
casserole / casseroles / 90 / chopping board, frying pan, apron
capacity: 2-litre, 4-litre, 6-litre
material: enamelled iron, stoneware, terracotta, spun aluminium
use: slow stews, no-knead bread, batch cooking, supper for eight, cold Sundays
- self-basting lid | Bumps under the lid drip the juices back over the meat. | keep a roast from drying out
- wide loops | The loops are wide enough for two thick oven gloves. | carry a hot supper from oven to table
- steam notch | A small notch lets steam out before anything boils over. | stop beans boiling over
- straight sides | Straight sides give a loaf the room to rise. | bake crusty bread at home
- stacking lid | The lid turns over, so that two can stand in one space.
  | slow cooking with little cupboard space
kitchen knife / kitchen knives / 62 / chopping board, apron, frying pan
blade: 9 cm, 16 cm, 20 cm
undyed: high-carbon steel, stainless steel, layered steel, carbon steel
use: chopping herbs, slicing tomatoes, jointing chickens, everyday dinners, first flats
- full tang | The blade runs through to the end of the handle for balance. | chop for hours without wobble
- walnut handle | The walnut handle is oiled by hand and warm to hold. | natural grip for slicing onions
- hollow-ground edge | Hollows along the blade stop slices from clinging. | potato slices stick when I cut
- blade guard | A slip-on guard makes it safe in a drawer or a picnic bag.
  | cut bread and cheese at a picnic safely
- finger notch | A notch behind the edge keeps fingers where they should be.
  | safe slicing for a beginner cook
chopping board / chopping boards / 36 / kitchen knife, frying pan, apron
size: small, medium, large
undyed: olive wood, end-grain oak, beech, bamboo, maple
use: fresh herbs, bread and cheese, Sunday roasts, tiny kitchens, long cooking evenings
- juice groove | A groove round the edge catches whatever the roast lets go.
  | carve meat without juice on the counter
- hanging loop | A loop at the corner hangs it out of the way. | prepare vegetables where there is no drawer
- rubber feet | Small feet grip the worktop and keep the underside dry. | stop it sliding when I cut onions
- sliding tray | A tray slides out below and takes the chopped vegetables.
  | gather peelings while preparing dinner
- bevelled edge | The bevelled edge leaves room for fingers to pick it up.
  | serve cheese to guests at the table
mug / mugs / 16 / insulated flask, throw, notebook
capacity: 200 ml, 300 ml, 450 ml
material: stoneware, enamelled steel, bone china, porcelain
use: first coffees, soup at the desk, cocoa by the fire, tea breaks, guests who stay late
- thumb rest | A rest on the handle tells the thumb where to go. | comfortable tea for stiff hands
- thick walls | Thick walls keep the second half as hot as the first. | my coffee goes cold at my desk
- stacking foot | A recessed foot lets a whole row stack on a narrow shelf.
  | hot drinks for six with one small shelf
- wooden lid | The lid keeps steam in and doubles as a biscuit plate. | keep wasps out of my tea
- big handle | The handle has room for four fingers or one mitten. | cocoa outdoors with mittens on
apron / aprons / 30 / chopping board, kitchen knife, gardening gloves
length: short, knee-length, full-length
material: washed linen, waxed cotton, denim, cotton twill
use: baking days, pottery class, the barbecue, floury children, messy sauces
- crossed straps | The straps cross at the back and spare the neck. | cook all day without a sore neck
- towel loop | A loop at the hip keeps a tea towel at hand. | somewhere to wipe my hands while baking
- deep pockets | Two deep pockets swallow tongs, twine and a telephone. | carry tongs at the barbecue
- pencil slot | A narrow slot at the chest is for a pencil or a thermometer. | note down recipes while I cook
- adjustable neck strap | The neck strap lets out for tall people and takes in for small.
  | protect my child's clothes from flour

# Garden
secateurs / secateurs / 34 / gardening gloves, hand trowel, watering can
hand: small-hand, large-hand, left-handed
undyed: high-carbon steel, stainless steel, forged aluminium
use: rose beds, fruit trees, cut flowers, tough old stems, first gardens
- bypass blades | The blades pass like scissors and leave a clean cut. | cut flowers cleanly for a vase
- rolling handle | The lower handle turns as it closes and saves the wrist. | prune roses with a bad wrist
- sap groove | A groove drains the sap, so the blades do not gum up. | sticky stems jam my cutters
- leather catch | The leather catch can be slipped with one thumb. | trim fruit trees one-handed on a ladder
- ratchet action | The ratchet bites through thick wood in three easy squeezes.
  | thick branches and weak hands
hand trowel / hand trowels / 18 / gardening gloves, plant pot, seed box
width: narrow, broad
undyed: stainless steel, forged iron, copper, recycled aluminium
use: potting up, spring bulbs, stubborn weeds, window boxes, heavy clay
- depth marks | Marks on the blade show how deep the bulbs should go. | plant tulips at the right depth
- ash handle | The ash handle is turned smooth and oiled twice. | splinter-free digging in small beds
- root teeth | One toothed edge saws through roots that are in the way. | weeds with long stubborn roots
- hanging thong | A leather thong hangs it on the shed door. | I keep losing things in the flower bed
- forged neck | The neck is forged from one piece and will not bend in clay.
  | dig in heavy clay without bending
watering can / watering cans / 40 / plant pot, seed box, hand trowel
capacity: 1-litre, 5-litre, 9-litre
material: galvanized steel, painted tin, recycled plastic, enamelled steel
use: seed trays, balcony tomatoes, indoor ferns, dry summers, greenhouse rounds
- fine rose | The brass rose falls as gently as drizzle on seedlings. | seedlings get flattened by the hose
- long spout | A long thin spout reaches pots at the back of the sill. | reach ferns at the back of the shelf
- balanced handle | The handle runs over the top and tips without effort. | dry borders and a weak wrist
- splash guard | A lip at the rim keeps the water off your shoes. | look after houseplants without a wet floor
- litre scale | Marks inside show how much the feed needs. | mix tomato feed in the right dose
plant pot / plant pots / 22 / watering can, hand trowel, seed box
diameter: 12 cm, 18 cm, 26 cm, 32 cm
material: terracotta, glazed stoneware, recycled plastic, fibre clay, painted zinc
use: herbs by the door, sunny sills, a first olive tree, patio tomatoes, shady corners
- matching saucer | A matching saucer saves the windowsill from rings. | basil without water rings on the sill
- water reservoir | A reservoir in the base waters the roots for two weeks.
  | keep herbs alive while I am on holiday
- raised feet | Little feet let the rain run off and the frost pass by.
  | frost always cracks my patio planters
- hanging cord | A knotted cord hangs it in the window or from a beam.
  | show off trailing ivy without shelf space
- wide rim | The wide rim makes it easy to lift with both hands. | a home for the little olive tree
gardening gloves / gardening gloves / 19 / secateurs, hand trowel, watering can
size: small, medium, large
material: goatskin, waxed canvas, bamboo jersey, recycled nylon
use: brambles, wet autumn leaves, sowing days, nettle patches, compost heaps
- long cuffs | The cuffs reach the elbow and shrug off thorns. | roses scratch my arms
- touch fingertips | The fingertips work on a telephone without taking them off.
  | look up weeds on my phone outside
- dipped palms | Rubber-dipped palms stay dry in wet soil. | dry hands in wet soil
- padded knuckles | Padding over the knuckles takes the knocks of stony ground.
  | move stones without grazed knuckles
- breathable backs | Open-knit backs let hands breathe in July. | hot hands when weeding in July
seed box / seed boxes / 24 / plant pot, hand trowel, watering can
contents: six-packet, twelve-packet, twenty-packet
undyed: recycled card, beech, tinplate
use: kitchen gardens, balconies, school plots, bees and butterflies, cutting beds
- heirloom tomatoes | Six old tomatoes that taste of August, with notes on each.
  | grow tomatoes with real flavour
- bee mixture | Twelve native flowers keep bees fed until October. | bring bees to my balcony
- cut-and-come leaves | Eight kinds of salad grow again after every cutting.
  | fresh salad all summer from a window
- giant sunflowers | Sunflowers, pumpkins and beans grow taller than the gardener.
  | grow something huge with the kids
- sowing calendar | A calendar inside the lid says what to sow and when. | never know when to sow what

# Needlecraft
yarn / yarns / 14 / knitting needles, project bag, pattern book
weight: lace-weight, double-knit, aran, chunky
material: merino wool, alpaca, organic cotton, silk and wool, lambswool
use: first scarves, baby blankets, winter socks, slow cardigans, striped shawls
- hand-dyed skeins | Each skein is dyed in a pot by hand, so no two quite agree.
  | wool in colours no one else has
- superwash finish | It survives the washing machine and the child who wears it.
  | make baby clothes that can be washed hot
- soft halo | A light halo blurs the stitches and hides the odd mistake. | make a fluffy warm scarf
- tight twist | The tight twist wears well at heels and elbows. | make socks that do not wear through
- speckled tweed | Flecks of other colours turn up every few stitches. | knit a speckled country jumper
knitting needles / knitting needles / 21 / yarn, pattern book, project bag
gauge: 3 mm, 4 mm, 6 mm, 10 mm
undyed: birch, bamboo, rosewood, polished steel, carbon fibre
use: sock knitting, heavy jumpers, lace shawls, beginners, evening trains
- swivel cable | The cable swivels at the join and never kinks. | knit a jumper in the round
- sharp points | Long sharp points find their way into the tightest stitch.
  | make fine lace without splitting threads
- numbered caps | The end caps carry the size and stop stitches from escaping. | stitches keep falling off
- square shafts | Square shafts sit more easily in tired hands. | knit with arthritis
- short length | They are short enough to use on a crowded train. | knit on the bus without elbowing anyone
embroidery kit / embroidery kits / 29 / fabric scissors, project bag, cushion
level: beginner, intermediate, advanced
undyed: linen, organic cotton, wool felt
use: quiet evenings, first stitches, rainy holidays, handmade gifts, long journeys
- printed pattern | The pattern is printed on the cloth, so there is nothing to trace.
  | learn to sew pictures with no tracing
- beech hoop | A beech hoop is in the box and serves as the frame. | make a picture to hang on the wall
- wildflower design | Twenty-two wildflowers are worked in nine simple stitches. | stitch wild flowers by hand
- stitch guide | An illustrated guide takes each stitch one picture at a time.
  | calm hobby with clear pictures to follow
- sorted threads | The threads come sorted on a card, with some to spare.
  | hobby gift with everything included
fabric scissors / fabric scissors / 33 / embroidery kit, project bag, pattern book
length: 10 cm, 18 cm, 25 cm
undyed: forged steel, stainless steel, titanium-coated steel
use: dressmaking, quilting, snipping threads, heavy denim, fine silk
- stork handles | The handles are shaped like a stork, as they were in 1850.
  | pretty gift for a friend who sews
- serrated blade | One serrated blade holds slippery cloth in place. | silk slips when I cut it
- angled handle | The angled handle lets the cloth lie flat on the table. | cut out a dress pattern accurately
- soft grips | Soft grips spare the thumb on long cutting days. | sore thumb after cutting quilts
- leather sheath | A leather sheath guards the points in the bag. | snip threads while travelling
project bag / project bags / 26 / yarn, knitting needles, embroidery kit
size: small, medium, large
material: cotton canvas, washed linen, quilted cotton, waxed canvas
use: socks on the go, half-made jumpers, craft evenings, patchwork, trips to the wool shop
- thread guide | A guide in the rim feeds the thread and keeps balls apart. | stop my wool getting tangled
- drawstring top | The drawstring top shuts before the cat takes an interest.
  | keep the cat out of my knitting
- inner pockets | Six inner pockets keep small tools in their place. | I keep losing stitch markers
- flat base | The flat base stands by the chair without falling over. | keep my handwork tidy by the sofa
- wrist loop | A loop over the wrist lets you work as you walk. | knit standing in a queue
pattern book / pattern books / 20 / yarn, knitting needles, embroidery kit
level: beginner, intermediate, advanced
undyed: buckram, soft card, glossy paper
use: knitters in a hurry, new parents, slow winters, using up leftovers, craft groups
- sock patterns | Thirty pairs run from plain ribs to mad stripes. | learn to turn a heel
- baby knits | Eighteen little things can be finished before the birth. | make a present for a newborn
- colourwork charts | Large charts make stranded colourwork less of a puzzle.
  | make a jumper with snowflakes on it
- mending chapter | A chapter on mending saves the jumpers you already have.
  | darn holes in my favourite jumper
- visible stitches | Every stitch is drawn large, left hand and right. | learn stitches as a left-hander

# Studio
sketchbook / sketchbooks / 18 / pencil set, watercolour set, fountain pen
format: A6, A5, A4, square
material: buckram, soft card, recycled card, natural linen
use: street scenes, life drawing, travel diaries, museum visits, daily practice
- lay-flat binding | It opens flat, so a drawing can run across two pages. | draw panoramas across two pages
- heavy paper | The heavy paper takes a wash without buckling. | paper that does not go wavy when wet
- pencil loop | A loop on the spine keeps a pencil from straying. | always lose my pencil when drawing outside
- toned pages | Mid-toned pages let you draw the light as well as the dark.
  | draw with white chalk and charcoal
- back pocket | A pocket at the back collects tickets and pressed leaves.
  | collect tickets next to my drawings
watercolour set / watercolour sets / 44 / paintbrush set, sketchbook, pencil set
pans: 12-pan, 18-pan, 24-pan, 36-pan
undyed: tinplate, beech, enamelled steel
use: hilltop painting, botanical studies, wet afternoons, holiday postcards, art class
- folding palette | The lid folds out into three mixing wells. | paint outdoors with no table
- earth colours | Ochres, umbers and siennas are ground from real earth. | paint landscapes in natural shades
- travel brush | A water brush in the lid means no jar and no spills. | paint on a train without a water jar
- refillable pans | Each pan lifts out and can be bought again alone. | replace only the blue that I used up
- metallic row | One row of metallics is for stars, fish and cards. | paint gold stars on Christmas cards
paintbrush set / paintbrush sets / 27 / watercolour set, sketchbook, apron
pieces: 4-piece, 7-piece, 12-piece
undyed: synthetic sable, hog bristle, squirrel mix, bamboo
use: loose washes, fine detail, acrylics, oils, school art boxes
- rolled case | The canvas case rolls up and ties with a ribbon. | carry painting things without bent tips
- fine points | The smallest draws an eyelash, or a single hair of a cat. | paint tiny details
- flat wash brush | A broad flat brush lays a whole sky in two strokes. | paint an even sky
- short handles | The short handles fit in a box and in small hands. | painting things for small hands
- springy tips | The tips come back to a point after every stroke. | paint thin lines that do not wobble
pencil set / pencil sets / 23 / sketchbook, notebook, watercolour set
pieces: 6-piece, 12-piece, 24-piece, 48-piece
undyed: cedar, linden, recycled newspaper
use: portraits, maps, colouring at the table, field notes, technical drawing
- soft grades | Six soft grades go all the way down to a velvet black. | rich black shading
- water-soluble cores | Add a wet brush and the lines turn to paint. | draw first and turn it into paint
- tin case | The flat tin holds every piece in its own groove. | draw in the car without things rolling away
- triangular barrels | Three flat sides stop them rolling and help young grips.
  | help a child hold it properly to write
- brass sharpener | A brass sharpener lives in the box. | draw on holiday and stay sharp
notebook / notebooks / 15 / fountain pen, pencil set, mug
ruling: plain, ruled, dotted, squared
material: buckram, full-grain leather, soft card, recycled card
use: lists, morning pages, lab notes, meetings, garden records
- numbered pages | Numbered pages and a blank index make old notes easy to find.
  | find my old meeting notes again
- two ribbons | One ribbon marks today and the other marks next month.
  | plan today and next month in one place
- ink-proof paper | Wet ink dries on the page and stays off the back of it. | ink bleeds through when I write
- perforated corners | Corners tear off, so it always opens at today. | open straight at today's list
- elastic strap | A broad elastic strap keeps loose papers in. | hold loose receipts and thoughts together
fountain pen / fountain pens / 46 / notebook, sketchbook, pencil set
nib: extra-fine, fine-nib, medium-nib, broad-nib
material: lacquered brass, anodized aluminium, stained walnut, resin
use: long letters, signatures, journals, exam days, birthday cards
- piston filler | It drinks straight from the bottle and holds a week of writing.
  | write without throwaway cartridges
- ink window | A clear window shows how much ink is left. | never run dry in an exam
- pocket clip | A sprung clip holds on to a shirt or a notebook. | something to sign with from my shirt pocket
- shaped grip | The grip is shaped for a relaxed hand and a long letter.
  | hand cramps when I write long letters
- screw cap | The cap screws on and does not come off in a bag. | handwriting on the move without leaks

# Home
throw / throws / 68 / cushion, candle, mug
size: lap-size, sofa-size, bed-size
material: lambswool, organic cotton, recycled wool, brushed wool
use: film nights, chilly sofas, picnics, spare rooms, reading chairs
- fringed ends | The fringe is twisted by hand at both ends. | make the old sofa look nicer
- waffle weave | The waffle weave traps warm air and weighs very little. | warm and light on the bed in spring
- double-sided check | One side shows a small check and the other a plain.
  | change the look of a bed by turning it over
- foot pocket | A sewn pocket at one end is only for cold feet. | cold feet when I watch a film
- machine-washable weave | It goes in the machine at 40 degrees, crumbs and all.
  | stay warm on a couch shared with a dog
cushion / cushions / 34 / throw, table lamp, candle
size: 30 cm, 45 cm, 60 cm
material: washed linen, velvet, recycled wool, organic cotton
use: window seats, hard chairs, reading corners, long car rides, garden benches
- feather filling | The feather filling can be plumped back after every guest.
  | soft support for my back on the sofa
- buckwheat filling | Buckwheat hulls settle around the neck and stay there. | stiff neck when reading in bed
- hidden zip | The hidden zip lets the cover off for a wash. | dog keeps lying on the good seat
- piped edge | Contrasting piping keeps the edge crisp. | brighten up a plain grey armchair
- tie tapes | Tapes at the corners tie it to a kitchen chair. | hard wooden chairs that need padding
table lamp / table lamps / 75 / throw, wall clock, candle
height: 25 cm, 40 cm, 55 cm
material: enamelled brass, painted wood, ceramic, powder-coated steel, paper
use: bedside reading, dark hallways, late desks, sideboards, long evenings
- touch dimmer | A tap on the base goes through three levels of light. | read in bed without waking my partner
- swivel shade | The shade turns towards the page and away from the eyes.
  | light on the page but not in my eyes
- cordless base | It runs for thirty hours and goes wherever you sit. | light on the terrace with no cable
- linen flex | The long flex is covered in linen and worth seeing. | brighten a corner far from the socket
- warm bulb | The bulb in the box is the colour of late afternoon. | make a cold room feel warm in the evening
candle / candles / 17 / lantern, throw, mug
scent: unscented, cedar, sea salt, fig, lavender
undyed: beeswax, soy wax, rapeseed wax
use: baths, long tables, power cuts, quiet Sundays, housewarmings
- cotton wick | The cotton wick burns straight and needs little trimming. | cosy evening without black smoke
- wooden wick | The wooden wick crackles softly, like a very small fire. | sound of a fire without a fireplace
- lidded tin | The tin has a lid, so it can come along on a trip. | nice smell for a hotel room
- reusable jar | The jar is a good drinking glass afterwards. | hostess gift with nothing to throw away
- sixty-hour burn | It burns for some sixty hours if you let it. | soft light for many evenings
wall clock / wall clocks / 52 / table lamp, storage basket, notebook
diameter: 20 cm, 30 cm, 40 cm
material: painted oak, enamelled brass, painted steel, stained ash, recycled card
use: kitchen walls, home offices, classrooms, hallways, the shed
- silent movement | The hands glide without a tick. | ticking keeps me awake
- pendulum | A short pendulum swings below, chiefly for company.
  | something that swings and ticks for the hall
- large numerals | The numerals can be read from the far end of the kitchen.
  | tell the time without my glasses
- day hand | A third hand points to the day of the week. | never know which day it is
- radio setting | It sets itself by radio and knows when summer time begins.
  | forget to change the hour in spring
storage basket / storage baskets / 31 / throw, cushion, project bag
size: small, medium, large, log-size
material: willow, seagrass, felt, cotton rope, recycled paper
use: firewood, toys, towels, wool, shoes by the door
- leather handles | Leather handles make a full load easy to carry. | carry logs in from the shed
- removable lining | The lining lifts out and can be washed. | laundry corner that looks tidy
- fitted lid | A lid hides whatever had to be tidied in a hurry. | hide toys when visitors come
- folding sides | The sides fold flat when it is not needed. | tidy up now and then in a small flat
- divided inside | Dividers keep left socks from right ones. | sort scarves and gloves in the hall

# Workshop
hammer / hammers / 29 / screwdriver set, folding rule, tool roll
head: 8 oz, 16 oz, 20 oz
undyed: forged steel, cast steel, tool steel, titanium
use: picture hooks, framing, small repairs, tacks and upholstery, shed building
- hickory shaft | The hickory shaft soaks up the sting of a hard blow. | wrist aches after banging nails
- straight claw | The straight claw lifts boards as well as nails. | take old floorboards up
- soft face | A soft face taps joints home and leaves no mark. | knock furniture together without dents
- magnetic slot | A magnet holds the first nail, so your thumb need not.
  | hang pictures without hitting my thumb
- waisted grip | The narrow waist of the grip sits well in smaller hands. | do small repairs with small hands
hand plane / hand planes / 88 / folding rule, chisel set, tool roll
sole: 15 cm, 24 cm, 35 cm
undyed: cast iron, bronze, beech, hornbeam
use: sticking doors, chair making, clean edges, guitar building, table tops
- adjustable mouth | The mouth closes for thin shavings from difficult grain. | smooth wood with wild grain
- thick blade | The thick blade does not chatter across knots. | leave a glassy surface on knotty pine
- brass adjuster | A knurled brass wheel sets the depth to a hair. | door sticks in its frame in winter
- low-angle bed | The low angle cuts end grain as though it were cheese. | clean up end grain
- shaped tote | The rear handle is shaped to fill the palm. | flatten a table top by hand
chisel set / chisel sets / 72 / hand plane, hammer, tool roll
pieces: 3-piece, 4-piece, 6-piece
undyed: high-carbon steel, layered steel, chrome-vanadium steel
use: dovetails, door hinges, carving, timber frames, evening classes
- ash handles | The ash handles carry steel hoops and may be struck. | knock out joints in oak beams
- bevelled sides | Bevelled sides reach into the corners of a dovetail.
  | make neat drawers with hand-cut joints
- edge caps | Each edge has its own cap for the drawer or the bag. | sharp tools safe around children
- flat backs | The backs are lapped flat, so they sharpen in minutes. | woodwork without an hour of sharpening
- short butt blades | Short blades give control where there is little room. | fit a hinge in a tight corner
screwdriver set / screwdriver sets / 26 / folding rule, hammer, tool roll
pieces: 4-piece, 6-piece, 12-piece
undyed: chrome-vanadium steel, stainless steel, tool steel
use: flat-pack weekends, bicycles, spectacles, old radios, kitchen drawers
- magnetic tips | The magnetic tips keep small screws from the floor. | stop dropping tiny screws
- beech handles | The beech handles are shaped like eggs and fit the palm. | wooden grips that do not slip
- ratchet handle | A ratchet does the turning back for you. | build flat-pack furniture quickly
- precision sizes | The smallest is made for spectacles and watches. | mend my glasses
- bench stand | A stand keeps them upright and in order. | tools in order on the bench
folding rule / folding rules / 14 / hammer, hand plane, screwdriver set
length: 1 m, 2 m
undyed: boxwood, beech, fibreglass, aluminium
use: shelves, window frames, carpenters, sewing rooms, school workshops
- brass joints | The brass joints click open and stay where they are put. | take sizes for a new shelf
- depth slide | A brass slide measures inside holes and grooves. | know how deep a hole is
- double scale | One side counts in centimetres, the other in inches. | convert inches while building
- angle marks | Marks at the first joint give common angles. | find the angle for a picture frame
- pencil-length fold | It folds to the length of a pencil. | know whether the wardrobe will fit
tool roll / tool rolls / 42 / chisel set, screwdriver set, hammer
pockets: 6-pocket, 10-pocket, 16-pocket
material: waxed canvas, full-grain leather, cotton canvas, recycled sailcloth
use: carving tools, spanners, site work, motorcycle trips, small workshops
- covering flap | A flap folds over the edges before it is rolled. | blades cut through my bag
- hanging eyelets | Brass eyelets hang it open above the bench. | see all my spanners at once on the wall
- zipped pouch | A zipped pouch at the end is for bits and loose screws. | loose bits get lost in the van
- double buckles | Two buckles hold it tight, half full or crammed. | take spanners on a motorbike tour
- graded pockets | The pockets grow from narrow to broad. | keep chisels of many widths apart
"""

# A style is heard, not named: it has title words, product names, colours, the different words that shoppers
# use for it, and sentences. {it} becomes it or them, {It} It or They; {colour} only fits a coloured item.
STYLES = """
# minimal
title: pared-back, plain, quiet, slimline
names: Nil, Mono, Fold, Sum, Still, Axis, Even, Blank, Less, Clear, Edge, Zero, Pause, Unit
colours: off-white, stone grey, charcoal, black, pale sand, fog
query: no-frills, uncluttered, understated, simple modern, scandi style
- There is nothing on {it} that could be left off.
- No logo, no fuss, no second thoughts.
- Drawn with as few lines as possible.
- One job, done without comment.
- {It} will disappear into any room or bag, and be missed only when lent out.
- Every part was questioned, and most were removed.
- The shape is calm and asks for no attention.
- The {colour} shade is exactly as dark as it needs to be.
- What remains is proportion, and a very even finish.

# rustic
title: rough-and-ready, hearty, weathered, hand-worked
names: Barley, Hearth, Cobble, Bramble, Oxbow, Thatch, Ember, Hayloft, Turnip, Drover, Acorn, Byre, Larder
colours: oatmeal, bark brown, rust, moss green, clay, straw
query: farmhouse, country cottage, log cabin, earthy, homely
- {It} will look better for every scratch.
- No two leave the barn quite alike.
- Expect small marks of the hands at work.
- The sort of thing that stays in a house for thirty years.
- Made slowly, near a stove.
- Plain country sense, put together by hand.
- Goes well with mud, bread and woodsmoke.
- The {colour} shade is never quite the same from one batch to the next.
- Small flaws are left in, because they are honest.

# playful
title: cheery, happy-go-lucky, merry, cheeky
names: Hopscotch, Noodle, Pickle, Biscuit, Doodle, Bubble, Wiggle, Jellybean, Yo-Yo, Tickle, Moppet, Skittle
colours: sherbet pink, banana yellow, mint, sky blue, tangerine, lilac
query: quirky, fun, whimsical, silly but useful, cute
- Look closely and you may find a small fox.
- Guaranteed to make a grey Tuesday less so.
- Serious about the work, not about much else.
- Children approve, and adults pretend it was for the children.
- The {colour} shade was chosen by somebody in a very good mood.
- There is a joke on the label, and it is not bad.
- Made to be grinned at.
- Comes with a sheet of stickers for no reason at all.
- Give {it} a name; everybody does.

# technical
title: precision, lab-tested, field-proven, fine-tuned
names: Vector, Kilo, Delta 2, Apex, Torque, Orbit, Flux, Summit X, Relay, Nova 4, Gradient, Pulse
colours: graphite, signal orange, steel blue, black, slate, lime
query: high performance, professional grade, serious, engineered, expert level
- Tested for longer than anybody will ever need.
- Every gram was weighed, and then argued over.
- Tolerances are held to a tenth of a millimetre.
- Tried over two winters by people who complain well.
- Spare parts and a repair sheet are available for ten years.
- The data sheet is longer than this text.
- Version three is stronger at the stress points and lighter everywhere else.
- Built to a standard, then checked one by one.
- The {colour} shade is not for show: it was the easiest to find in fog.

# heritage
title: time-honoured, Edwardian-pattern, bench-made, archive
names: Albion, Regent, Sexton, Warden, Chancery, Bailiff, Verger, Beadle, Alderman, Sovereign, Provost
colours: racing green, oxblood, navy, tan, claret, ivory
query: old-fashioned, traditional, vintage looking, classic, antique style
- The pattern has barely changed since 1911.
- Finished by one maker, who signs the label.
- To be mended, handed down and argued over in wills.
- Made on machines older than the people who run them.
- A drawing in the company ledger shows the same thing, at nine shillings.
- Proper in every detail, down to the parts that nobody sees.
- {It} will outlast fashion, having done so before.
- Boxed in dark card with a numbered tag.
- The {colour} shade is matched to a sample kept since the founder's day.

# coastal
title: harbour-made, breezy, windswept, boatyard
names: Gannet, Shingle, Skerry, Lugger, Spindrift, Cockle, Fulmar, Breakwater, Dinghy, Estuary, Plover
colours: navy, sea-glass green, chalk, driftwood grey, faded red, sky blue
query: nautical, seaside, beach house, maritime, sailor style
- Salt air does {it} nothing but good.
- The {colour} shade is that of a boat after its third summer.
- Looks at home on a windowsill with pebbles.
- First made for a boatyard, and borrowed ever since.
- Smells faintly of rope when new.
- Made where the road ends at a slipway.
- Good on deck, good in harbour, good with chips.
- Whitewash, rope and a little weather were the inspiration.
- The gulls have tried to steal {it}, which we take as praise.

# botanical
title: meadow, hedgerow, fern-marked, herbarium
names: Sorrel, Clover, Vetch, Yarrow, Campion, Foxglove, Tansy, Willowherb, Hazel, Bluebell, Teasel, Betony
colours: fern green, sage, foxglove pink, buttercup, moss green, plum
query: floral, leafy, nature inspired, flowery, woodland themed
- A sprig of cow parsley, drawn from life, runs along one side.
- The pattern follows a lane in May.
- The {colour} shade comes from madder, weld and other plants.
- Each season brings a new flower; this one is campion.
- Brings a little of the outdoors in, or the other way round.
- Packed in paper that can be planted, and will come up as poppies.
- Drawn by a botanist, which is why the stamens are right.
- A seed head is stamped where the maker's mark would be.
- One petal in each print run is wrong on purpose, for luck.

# bold
title: high-contrast, electric, big-stripe, poster-art
names: Boom, Zebra, Neon, Fanfare, Riot, Cymbal, Salsa, Rocket, Bravo, Tango, Dazzle, Thunder
colours: cobalt blue, hot pink, scarlet, sunflower yellow, emerald, black
query: bright, eye-catching, statement, loud, vivid modern
- Visible from the other side of the valley.
- Shy people should look away now.
- Big shapes, hard edges and no apologies.
- The graphics come from a poster studio that fears nothing.
- The {colour} shade meets a second one it should not get on with, and does.
- Nobody will take {it} home by mistake.
- Turned up to eleven and left there.
- If beige had an opposite, this would be the candidate.
- You will not lose {it} in a cupboard, or anywhere else.
"""

# Brands: name | price level, 1 cheap to 4 dear | style | departments | a sentence about the house.
BRANDS = """
Ostrel | 3 | minimal | Kitchen, Home, Studio | Ostrel is three designers and one long table.
Plenmar | 2 | minimal | Walking, Camping, Home | Plenmar keeps only nine products and improves them.
Vondry | 4 | minimal | Kitchen, Home, Workshop | Vondry makes one thing a year and makes it well.
Tessum | 1 | minimal | Studio, Needlecraft, Home | Tessum saves on packaging and says so on the box.
Halvane | 3 | minimal | Walking, Garden, Kitchen | Halvane sells mostly to architects.
Brackenhowe | 2 | rustic | Camping, Kitchen, Garden | Brackenhowe works from an old sheep barn.
Thornhallow | 3 | rustic | Home, Kitchen, Workshop | Thornhallow buys its wood from the next valley.
Oddlebury | 1 | rustic | Garden, Home, Needlecraft | Oddlebury began as a stall at a village market.
Marrowby | 2 | rustic | Workshop, Walking, Garden | Marrowby is a smith, two apprentices and a donkey.
Hobbleden | 3 | rustic | Camping, Walking, Home | Hobbleden stitches everything above a cider press.
Pippolo | 1 | playful | Home, Studio, Kitchen | Pippolo tests each idea on a class of seven-year-olds.
Wimblekin | 2 | playful | Needlecraft, Studio, Home | Wimblekin is run by sisters who never agreed on beige.
Zazzaree | 1 | playful | Camping, Walking, Kitchen | Zazzaree thinks that outdoor kit should cheer you up.
Jollifer | 2 | playful | Garden, Kitchen, Needlecraft | Jollifer hides a duck somewhere in every catalogue.
Noodlebrook | 3 | playful | Studio, Needlecraft, Garden | Noodlebrook draws first and asks questions later.
Skeldane | 4 | technical | Camping, Walking | Skeldane equips mountain rescue teams.
Kryvast | 3 | technical | Camping, Walking, Workshop | Kryvast was founded by two bridge engineers.
Torquell | 3 | technical | Workshop, Garden, Kitchen | Torquell publishes its test results, even the bad ones.
Axelorn | 2 | technical | Walking, Camping, Garden | Axelorn repairs whatever it has sold.
Velnark | 2 | technical | Studio, Workshop, Needlecraft | Velnark comes from the world of watch tools.
Cadwyth & Sons | 4 | heritage | Workshop, Kitchen, Garden | Cadwyth & Sons is now run by a daughter.
Ashgrave | 3 | heritage | Walking, Home, Studio | Ashgrave still answers letters by hand.
Brindlewick | 3 | heritage | Needlecraft, Home, Kitchen | Brindlewick has kept one mill for five generations.
Dunmorrow | 2 | heritage | Camping, Walking, Workshop | Dunmorrow once made kit for railway surveyors.
Fennaway | 4 | heritage | Studio, Needlecraft, Home | Fennaway supplied two royal households and a circus.
Saltwhin | 2 | coastal | Home, Kitchen, Garden | Saltwhin lives in a former lifeboat station.
Driftelle | 3 | coastal | Home, Needlecraft, Studio | Driftelle closes whenever the surf is good.
Kelpdown | 1 | coastal | Walking, Camping, Kitchen | Kelpdown gives a tenth of its profit to beach cleaning.
Sennary | 3 | coastal | Walking, Camping, Garden | Sennary is named after its first boat.
Limpetry | 2 | coastal | Kitchen, Workshop, Studio | Limpetry holds on to its makers for decades.
Fernlisle | 3 | botanical | Garden, Home, Studio | Fernlisle has a walled garden instead of an office.
Mossamy | 2 | botanical | Garden, Kitchen, Needlecraft | Mossamy grows its own dye plants.
Petalune | 1 | botanical | Studio, Home, Needlecraft | Petalune prints in small runs with plant inks.
Verdellow | 4 | botanical | Garden, Home, Walking | Verdellow works with three botanic gardens.
Sorrelby | 2 | botanical | Camping, Kitchen, Workshop | Sorrelby plants a tree for each parcel.
Tangaro | 1 | bold | Camping, Walking, Home | Tangaro has never knowingly made anything grey.
Brashwell | 2 | bold | Workshop, Kitchen, Garden | Brashwell believes that tools should be easy to find.
Zindigo | 3 | bold | Home, Needlecraft, Studio | Zindigo began with a printing press and a dare.
Loudermoor | 2 | bold | Walking, Camping, Garden | Loudermoor dresses half of the county's cyclists.
Popplestrand | 3 | bold | Kitchen, Studio, Workshop | Popplestrand asks a different artist every spring.
"""

# Titles; the first is the one for product lines. {colour} follows a comma, or is empty.
TITLES = """
{brand} {name} {size} {material} {kind}{colour}
{brand} {adjective} {material} {kind} with {feature}{colour}
{name} {material} {kind} with {feature} by {brand}
{adjective} {size} {kind} with {feature}, {brand} {name}
{brand} {name} {kind}, {material}, {size}{colour}
{brand} {name} {adjective} {kind}{colour}
"""

# First sentences of a description; {full} is size, material and kind with an article, {short} has no size.
INTRODUCTIONS = """
{full} for {use}.
{short}, made with {use} in mind.
{brand} made {this} {size} {kind} for {use}.
Meet {name}, {full} from {brand}.
For {use}: {full} from {brand}.
The {name} range by {brand} now has {full}, just right for {use}.
Our buyers looked long for {short} that would suit {use}.
{short} for {use}, and for much else besides.
For {this} {kind} {brand} chose {material}, with {use} in mind.
{size} {kind} in {material}, chosen by our shop staff for {use}.
"""

# How people ask, by kind of query. {asked}, {reversed} and {listed} are the same attributes in three ways;
# those, {max_price}, {feature} and {use} are also constraints on what is relevant. A line that stands twice
# is twice as likely.
QUERIES = """
# attribute
{asked} {noun}
{asked} {noun}
{noun} {reversed}
{noun}, {listed}
{asked} {noun} with {feature}
{noun} with {feature}, {asked}
{asked} {noun} for {use}

# brand
{brand} {kind}
{lower_brand} {plural}
{kind} by {brand}
{plural} from {brand}
{brand} {kind} under {max_price}
{brand} {asked} {kind}

# need
{need}
{need}
{need}, under {max_price}
{need}, no more than {max_price}
{need}, {listed}

# style
{look} {kind}
{look} {plural}
{look} {kind} as a present
{kind}, something {look}
{look} {kind} up to {max_price}
{look} {kind}, {asked}
{look} {kind} for {use}
"""

JOINING_WORDS = ("with", "by", "and", "&")
UNITS = ("cm", "mm", "m", "ml", "oz", "litre")
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
