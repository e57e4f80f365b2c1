"""What the co-reference task is built from: syllables of place names, scenes that name a place, passages that do not.

All texts were written for this package. A passage is complete in itself and speaks of no place and of nobody in a
scene, so that any number of them can stand between a place and the sentence that asks for it.
"""

SYLLABLES = (
    "Bel Cor Dra Fen Gal Hul Jor Kez Mol Nar Ost Pel Quil Rav Sol Tuv Ulm Vor Wex Zin".split(),
    "ada bri ema gul ilo kara luv mere nox oda pri ranu sela timo uvi zora".split(),
    "bask dorn feld grath holm kesh lund mar noth quist rind stad thal vash wick zeth".split(),
)
"""Beginnings, middles and ends; a place name is one of each, such as Quilranudorn."""


def _texts(block: str) -> tuple[str, ...]:
    return tuple(" ".join(text.split()) for text in block.strip().split("\n\n"))


def _scenes(block: str) -> tuple[tuple[str, str], ...]:
    return tuple(tuple(part.strip() for part in text.split("|")) for text in _texts(block))


SCENES = _scenes("""
When the mill closed, Tomas packed one bag, sold his bicycle and took the night bus to the town of {place}. He
knew nobody there, but the rent was low and the bakery by the bridge was looking for a man who could start at four. |
Tomas, who had left on the night bus after the mill closed, now lives in the town of

For eleven summers Ingrid had painted the same white lighthouse, and each autumn she carried the canvases home to the
island of {place}. Her neighbours hung them in their kitchens and never once asked her why the sea was always green. |
Ingrid, who paints the white lighthouse every summer, always goes home to the island of

The old clock in the school hall stopped on a Tuesday, and the only person able to mend it was Mr Abernathy from the
village of {place}. He came on foot, carrying his tools in a fishing basket, and asked for nothing but soup. |
Mr Abernathy, who mended the clock in the school hall, comes from the village of

Priya had promised her grandmother that one day she would see the orange groves again, so in March they drove for
two days to the valley of {place}. The trees were smaller than in the stories, but the smell was exactly right. |
Priya drove her grandmother for two days to see the orange groves in the valley of

Nobody expected the letter. It said that Captain Osei had left his boat, his parrot and all of his debts to a cousin
in the harbour of {place}. The cousin, who sold umbrellas, had met him once, at a wedding, and had not liked him. |
The cousin who was left Captain Osei's boat and parrot lives in the harbour of

After the election Marguerite wanted quiet, and she found it in a rented room above a pharmacy in the town of {place}.
She rose late, walked by the canal, and answered no question about who had counted the votes or how often. |
Marguerite, who wanted quiet after the election, rented her room in the town of

The twins had never agreed on anything until the day their father asked where the family should keep its bees, and
both of them said the village of {place}. Within a year there were forty hives on the slope behind the chapel. |
The twins agreed at once, and the bees of the family are now kept in the village of

It was raining when Leopold finally found the violin he had lost as a boy, in the window of a shoemaker in the city
of {place}. The shoemaker used it to keep the door open and was surprised that anybody would pay money for it. |
Leopold found the violin he had lost as a boy at a shoemaker's in the city of

Doctor Halloran could have worked anywhere. Instead she opened a clinic with two beds and a borrowed lamp in the
village of {place}. In the first winter she was paid mostly in potatoes, and she wrote home that she was happy. |
Doctor Halloran, who was paid in potatoes, opened her clinic in the village of

Every spring the company of actors loaded its painted castle on a cart and set out for the fair in the town of
{place}. They played the same comedy each time, because the mayor laughed so loudly at the scene with the goose. |
The actors, with their painted castle on a cart, play each spring in the town of

Among the papers in the attic was a map drawn by Uncle Fergus, with a small red cross beside the lake of {place}.
The children were sure of treasure. Their mother, who had known him, thought it was more likely to be a good bench. |
The red cross on the map that Uncle Fergus drew stands beside the lake of

Yuki lost the chess match in nineteen moves, shook hands, and went straight to the station to catch the last train
to the city of {place}. Her sister was waiting on the platform with a blanket, a thermos and no questions at all. |
Yuki, who had lost the chess match, took the last train to the city of

The museum had no money for a guard, so it was weeks before anyone saw that the silver spoon had gone. A boy later
found it in a field near the village of {place}. He had been using it to dig for worms, and it was hardly bent. |
The silver spoon that had gone from the museum was found near the village of

Because of the strike no ship would carry the piano, and so Bertrand had it pulled by six oxen over the pass to the
town of {place}. It arrived out of tune. He played it that same evening, with the oxen listening under the window. |
The piano that Bertrand had pulled by six oxen over the pass went to the town of

On the last page of her diary Philippa wrote a single line: the key is with the ferryman on the island of {place}.
No one in the family had ever heard her speak of a ferryman, nor did anyone know which door the key would open. |
Philippa wrote in her diary that the key is with the ferryman on the island of

When the river rose, the whole orchestra had to spend the night in a barn, and in the morning a farmer drove them
on to the city of {place}. They arrived with straw on their coats and gave the best concert of the whole tour. |
The orchestra that spent the night in a barn was driven on to the city of
""")
"""Pairs of an introduction, with `{place}` in it, and a closing sentence that ends just before the place."""

PASSAGES = {
    "kitchen": _texts("""
A stew is better on the second day because the starch from the potatoes has had time to thicken the broth and the
spices have spread through the meat. Let it cool with the lid off, put it in the refrigerator overnight, and warm it
slowly. If it looks too thick, add a spoonful of water rather than wine.

Bread dough needs two things that no recipe can give exactly: time and temperature. A warm kitchen may double the
dough in an hour, a cool one in three. Watch the dough and not the clock. When a finger pressed into it leaves a
dent that fills only halfway, it is ready for the oven.

To peel many cloves of garlic at once, put them into a jar, close it, and shake hard for half a minute. The skins
split and fall away. Fresh cloves resist a little longer than old ones. Whatever is not used at once keeps for a week
in oil, provided that the jar stands in the cold.

Salt does more than make food salty. It draws water out of cucumbers, firms the white of an egg, and hides bitterness
so that coffee and grapefruit seem sweeter. Cooks who season in small steps and taste after each one need less in
the end than those who add it all at the table.

A good omelette takes less than two minutes. The butter should foam but not brown, the eggs should be beaten just
until no streaks are left, and the pan must be shaken the whole time. It is folded while the middle still looks
wet, because it goes on cooking on the plate.

Vinegar wakes up a dull soup better than pepper does. A few drops at the very end lift the taste of beans, lentils
and cabbage without anyone noticing the acid. Lemon juice works as well, but its scent fades within minutes, so it
should go in only when the bowls are already on the table.

Rice sticks when its surface is covered with loose starch. Rinsing it three times in cold water carries most of that
away, and resting the covered pot for ten minutes after cooking lets the steam even out. Stirring undoes both. A
fork, drawn gently through the grains, is all that is needed.

The skin on a custard forms because proteins dry at the surface. A sheet of paper laid directly on top keeps the air
out and the custard smooth. If lumps have formed already, press everything through a sieve while it is still hot,
and nobody at dinner will ever know that it went wrong.

Mushrooms brown only after they have lost their water, and a crowded pan keeps the water in. Cook them in two batches
over high heat and leave them alone for the first few minutes. Butter and thyme go in last, when the edges have
turned the colour of chestnuts and the pan sounds dry.

Tea leaves should have room to open. A ball packed tightly gives a weak cup however long it steeps, while loose leaves
in a wide pot are done in four minutes. Black tea wants boiling water; green tea turns bitter in it, and is better
made with water that has stood a while.

A sharp knife is safer than a dull one, since it goes where it is pointed and needs no force. Draw the blade along the
stone at a steady angle, always away from you, until the edge catches on a fingernail. Ten strokes on each side are
enough if it is done every week.

Jam sets when fruit, sugar and acid are in balance. Apples and currants bring enough pectin of their own, but
strawberries need help from lemon. To test, put a drop on a cold saucer and push it with a finger: if the surface
wrinkles, the pot can come off the heat.
"""),
    "numbers": _texts("""
A number is divisible by nine exactly when the sum of its digits is. The reason is that ten leaves the remainder one
when it is divided by nine, and so does every power of ten. Each digit therefore counts only for itself, wherever in
the number it happens to stand.

Toss a fair coin ten times and the chance of exactly five heads is only about one in four. Many people guess that it
is much higher, because five is the most likely result. But the most likely result among eleven can still be rather
unlikely, and usually is.

There are infinitely many primes, and the proof takes three lines. Suppose there were only a few, multiply them all
together and add one. The result leaves a remainder when divided by any prime on the list, so some prime must be
missing from it. The list was never complete.

The diagonal of a square cannot be written as a fraction of its side. If it could, in lowest terms, both numbers would
have to be even, which contradicts the lowest terms. The discovery is said to have upset those who believed that
everything could be measured in whole numbers.

Of all shapes with the same perimeter the circle encloses the largest area. Bubbles know this in three dimensions,
and soap films stretched over a wire know a version of it too. The formal proof resisted mathematicians far longer
than the fact itself, which was never really in doubt.

To add the numbers from one to a hundred, write them forwards and backwards in two rows. Each column then sums to one
hundred and one, and there are a hundred columns. Half of the product is the answer. The same trick works for any
series with equal steps.

An average can mislead when a few values are very large. Nine workers earn thirty coins and the owner earns a thousand:
the mean is far above what almost anyone in the room is paid. The median, the value in the middle, stays at thirty and
tells the truer story.

In a room of twenty-three people the chance that two share a birthday is slightly better than even. It seems wrong
because we think of our own birthday. But what counts is the number of pairs, and twenty-three people form two
hundred and fifty-three of those.

A map of countries can always be coloured with four colours so that no neighbours match. The first accepted proof
checked almost two thousand cases by computer, and some people were unhappy with it. They wanted a reason, and had
been given a very long list instead.

Zero was a late invention. Merchants managed for centuries with signs that had no symbol for nothing, because an empty
row on a counting board needs no name. Only when numbers were written down and moved about on paper did the gap
itself require a mark.

If interest of seven percent is paid each year, money doubles in about ten years. The rule of thumb divides
seventy-two by the rate. It works because of how the logarithm of two behaves, and it is close enough for any rate
that an honest bank is likely to offer.

A knot in the mathematical sense has no loose ends. Two knots are the same if one can be bent into the other without
cutting the rope, and deciding this is surprisingly hard. Even a tangle that looks hopeless may fall open into a
plain loop after enough patient moves.
"""),
    "animals": _texts("""
Owls cannot move their eyes, which are shaped like tubes and fixed in the skull. Instead they turn the head, far enough
to look straight behind them. Extra room in the bones of the neck keeps the arteries from being pinched. Their hearing
is so exact that they can catch a mouse under snow.

An octopus has three hearts and blue blood. Two of the hearts serve the gills and the third serves the rest of the
body, and it stops when the animal swims. That may be why an octopus prefers to crawl. Each arm can taste what it
touches and solve small problems on its own.

Ants find the short way to food without any plan. Each one leaves a scent as it walks, and the shorter path is walked
more often in the same time, so its scent grows stronger. Soon nearly all of them follow it. When the food is gone,
the scent fades and the road is forgotten.

Camels do not carry water in their humps, but fat. The water is saved in other ways: the nose cools the breath and
catches its moisture, and the body may warm by several degrees before it begins to sweat. A thirsty camel can drink a
bathtub in a quarter of an hour.

Migrating geese fly in a slanted line because each bird gains lift from the air turned upwards by the wing in front.
The leader has the hardest work and is relieved from time to time. Young birds learn the route by flying it once with
their parents, landmarks and all.

A spider does not stick to its own web because it walks mostly on the threads that carry no glue. The frame and the
spokes are dry, and only the spiral is sticky. Many species eat the old web in the evening and spin a new one from
the same material before dark.

Elephants hear with their feet. Their deepest calls travel through the ground for several kilometres, and pads of fat
in the soles pass the tremor on to the bones. A herd at rest will sometimes freeze, all facing the same way, and lean
forward on to the front legs to listen.

Salmon return to the stream in which they hatched by following its smell. The memory is formed in a few days, as the
young fish leave for the sea, and it is used only once, years later. Fish raised in scented water have been led to the
wrong stream with a few drops of it.

Woodpeckers strike a trunk twenty times in a second and suffer no harm. The brain is small and fits tightly, so that it
hardly moves, and the beak hits straight without any twist. A tongue that wraps around the back of the skull pulls
grubs out of the finished hole.

The heart of a hummingbird beats more than a thousand times a minute in flight. To live through a cold night it lets its
body cool almost to the temperature of the air and its pulse slow to a twentieth. In the morning it needs half an hour
of shivering before it can fly.

Sea turtles cry salt. Their kidneys cannot get rid of all that they swallow with the seawater, so glands beside the
eyes do it in the form of thick tears. Sailors once took this for grief. On the beach the tears have another use, as
they wash the sand away.

Bats that hunt with sound call louder than a smoke alarm, but at a pitch that people cannot hear. Small muscles in the
ear loosen the bones at each call so that the bat does not deafen itself. Some moths have learned to answer with clicks
that blur the echo.
"""),
    "machines": _texts("""
A pendulum keeps time because a small swing takes as long as a smaller one. What does matter is its length, and metal
grows longer in the heat. Clockmakers solved this with rods of two metals, joined so that one pushed the weight up by
just as much as the other let it down.

The first bicycles had no chain. The pedals were fixed to the front wheel, and the only way to go faster was to make
the wheel larger, until the rider sat as high as on a horse. The chain let a small wheel turn quickly, and falling off
became much less dangerous.

Steam engines wasted most of their heat until someone thought of cooling the steam outside the cylinder. Before that,
the iron had to be warmed and chilled at every stroke. With a separate condenser the cylinder stayed hot, and the same
coal pumped three times as much water.

A zip closes because each tooth has a bump on one side and a hollow on the other. The slider pushes the rows together at
exactly the angle at which one fits into the next. It took about twenty years of small improvements before it could be
trusted on a pair of trousers.

Printing with movable type depended less on the press than on the metal. The alloy had to melt easily, fill the mould
to its corners and not shrink as it set. Lead alone was too soft, and a little antimony made it hard. The press itself
was borrowed from the makers of wine.

A refrigerator does not make cold, it moves heat. A liquid is allowed to boil at low pressure inside the box, which
takes heat from the food, and is then pressed together again outside, where it gives the heat away. This is why the
coils at the back are always warm.

The screw thread was used for centuries before two screws from different workshops would fit the same nut. Each maker
had an angle and a pitch of his own. Standard threads did not look like an invention to anyone, yet without them a
broken machine could only be mended where it was built.

Glass for large telescopes is cast in one piece and cooled for months, since a block that cools too quickly is full of
hidden strain. Grinding brings it near to the right shape, and polishing takes off the last millionths of a metre.
A draught in the workshop may spoil a whole week.

Lifts became common only after a brake was made that needed no attention. If the rope breaks, a spring that was held
flat by its pull snaps open and catches in the rails. The inventor showed it himself, by standing on the platform and
having the rope cut with an axe.

A sailing ship can move against the wind by going in a zigzag. The sail works like a wing and pulls to the side, the
keel refuses to go that way, and what remains points forward. Square sails could do this only badly, which is why the
triangular kind spread from harbour to harbour.

The typewriter put its letters in a strange order so that neighbouring arms would not jam. Later machines had no arms at
all, but by then millions of fingers knew the order by heart. Better layouts have been proposed many times, and each
has failed for the same reason.

Concrete does not dry, it hardens by a reaction that uses up the water, and it does so even at the bottom of the sea.
Too much water leaves pores behind and makes it weak. A slab that is kept wet for its first week will be stronger for
the rest of its life.
"""),
}
"""Passages by topic, each of about fifty words."""
