"""Made-up text of the kinds that a crawl is full of: other languages, repetition, lists, buttons and counters.

Every function takes a random generator and returns blocks, or lines, that follow from it alone. Words and sentences
were written for this file. Which stage of RefinedWeb (arXiv 2306.01116) should take each out is stated in ``crawl``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random

from mickle.studies.blocks import Block

# Language -> sentence pattern, then times, subjects, verbs, objects, places, apart by "|".
# fmt: off
GRAMMARS: dict[str, tuple[str, str, str, str, str, str]] = {
    "de": ("{time} {verb} {subject} {object} {place}.",
           "Gestern Abend|Im vergangenen Jahr|Am Montag|Nach dem Regen|Vor drei Wochen|Zum ersten Mal|Trotz der Kälte",
           "der alte Lehrer|die junge Ärztin|unser Nachbar|eine Gruppe von Schülern|die Gemeinde|der Bäcker|meine Oma",
           "beschrieb|verkaufte|suchte|fand|zeigte|reparierte|lobte|vergaß",
           "den neuen Vertrag|ein blaues Fahrrad|die Geschichte des Dorfes|einen kleinen Garten|das fehlende Werkzeug"
           "|die schönsten Bilder|einen Brief ohne Absender|mehrere Kisten mit Äpfeln",
           "in der Schule|am Rande der Stadt|hinter dem Bahnhof|auf dem Markt|im Keller des Rathauses|bei den Eltern"),
    "fr": ("{time}, {subject} {verb} {object} {place}.",
           "Hier soir|L'année dernière|Depuis longtemps|Après la pluie|Au printemps|Sans le vouloir|Un dimanche matin",
           "le vieux professeur|la boulangère|notre voisin|une équipe de chercheurs|la commune|mon oncle|le facteur",
           "a décrit|a vendu|a cherché|a trouvé|a réparé|a montré|a oublié|a choisi",
           "le nouveau contrat|une bicyclette rouge|l'histoire du village|un petit jardin|les plus belles images"
           "|une lettre sans adresse|plusieurs paniers de pommes|la clé du grenier",
           "devant l'école|près de la rivière|derrière la gare|au marché|dans la cave de la mairie|chez ses parents"),
    "es": ("{time}, {subject} {verb} {object} {place}.",
           "Ayer por la tarde|El año pasado|Desde hace tiempo|Después de la lluvia|En primavera|Sin querer|Un domingo",
           "el viejo maestro|la panadera|nuestro vecino|un grupo de alumnos|el ayuntamiento|mi abuela|el cartero",
           "describió|vendió|buscó|encontró|arregló|enseñó|olvidó|eligió",
           "el nuevo contrato|una bicicleta roja|la historia del pueblo|un pequeño jardín|las mejores fotografías"
           "|una carta sin remitente|varias cajas de manzanas|la llave del desván",
           "delante de la escuela|cerca del río|detrás de la estación|en el mercado|junto a la plaza|con sus hijos"),
    "it": ("{time}, {subject} {verb} {object} {place}.",
           "Ieri sera|L'anno scorso|Da molto tempo|Dopo la pioggia|In primavera|Senza volerlo|Una domenica mattina",
           "il vecchio maestro|la fornaia|il nostro vicino|un gruppo di studenti|il comune|mia zia|il postino",
           "ha descritto|ha venduto|ha cercato|ha trovato|ha riparato|ha mostrato|ha dimenticato|ha scelto",
           "il nuovo contratto|una bicicletta rossa|la storia del paese|un piccolo giardino|le immagini più belle"
           "|una lettera senza indirizzo|alcune casse di mele|la chiave della soffitta",
           "davanti alla scuola|vicino al fiume|dietro la stazione|al mercato|nella cantina del municipio|dai nonni"),
    "pt": ("{time}, {subject} {verb} {object} {place}.",
           "Ontem à tarde|No ano passado|Há muito tempo|Depois da chuva|Na primavera|Sem querer|Num domingo de manhã",
           "o velho professor|a padeira|o nosso vizinho|um grupo de alunos|a câmara municipal|a minha avó|o carteiro",
           "descreveu|vendeu|procurou|encontrou|consertou|mostrou|esqueceu|escolheu",
           "o novo contrato|uma bicicleta vermelha|a história da aldeia|um pequeno jardim|as melhores fotografias"
           "|uma carta sem remetente|várias caixas de maçãs|a chave do sótão",
           "em frente da escola|perto do rio|atrás da estação|no mercado|junto à praça|com os seus filhos"),
    "nl": ("{time} {verb} {subject} {object} {place}.",
           "Gisteravond|Vorig jaar|Op maandag|Na de regen|Drie weken geleden|Voor het eerst|Ondanks de kou",
           "de oude leraar|de jonge dokter|onze buurman|een groep leerlingen|de gemeente|de bakker|mijn tante",
           "beschreef|verkocht|zocht|vond|herstelde|toonde|vergat|koos",
           "het nieuwe contract|een blauwe fiets|de geschiedenis van het dorp|een kleine tuin|het verloren gereedschap"
           "|de mooiste foto's|een brief zonder afzender|enkele kisten met appels",
           "bij de school|aan de rand van de stad|achter het station|op de markt|in de kelder van het stadhuis"),
    "sv": ("{time} {verb} {subject} {object} {place}.",
           "I går kväll|Förra året|På måndagen|Efter regnet|För tre veckor sedan|För första gången|Trots kylan",
           "den gamle läraren|den unga läkaren|vår granne|en grupp elever|kommunen|bagaren|min moster",
           "beskrev|sålde|sökte|hittade|lagade|visade|glömde|valde",
           "det nya avtalet|en blå cykel|byns historia|en liten trädgård|de försvunna verktygen|de vackraste bilderna"
           "|ett brev utan avsändare|några lådor med äpplen",
           "framför skolan|vid stadens gräns|bakom stationen|på torget|i rådhusets källare|hos sina föräldrar"),
    "pl": ("{time} {subject} {verb} {object} {place}.",
           "Wczoraj wieczorem|W zeszłym roku|W poniedziałek|Po deszczu|Trzy tygodnie temu|Pierwszy raz|Mimo chłodu",
           "stary nauczyciel|młody lekarz|nasz sąsiad|pewien uczeń|burmistrz|piekarz|mój wujek",
           "opisał|sprzedał|znalazł|naprawił|pokazał|wybrał|zostawił|zobaczył",
           "nową umowę|niebieski rower|historię wsi|mały ogród|zgubione narzędzia|najpiękniejsze obrazy"
           "|list bez nadawcy|kilka skrzynek jabłek",
           "przed szkołą|na skraju miasta|za dworcem|na rynku|w piwnicy ratusza|u rodziców"),
    "ru": ("{time} {subject} {verb} {object} {place}.",
           "Вчера вечером|В прошлом году|В понедельник|После дождя|Три недели назад|В первый раз|Несмотря на холод",
           "старый учитель|молодой врач|наш сосед|один ученик|городской совет|пекарь|мой дядя",
           "описал|продал|нашёл|починил|показал|выбрал|оставил|увидел",
           "новый договор|синий велосипед|историю деревни|маленький сад|потерянные инструменты|самые красивые картины"
           "|письмо без адреса|несколько ящиков яблок",
           "перед школой|на краю города|за вокзалом|на рынке|в подвале ратуши|у родителей"),
}
THINGS = ("garden chairs", "winter boots", "kitchen lamps", "travel bags", "wall clocks", "coffee mugs", "bed sheets",
          "desk fans", "dog collars", "phone cases", "yoga mats", "sun hats", "tool boxes", "tea pots", "bike locks")
PRAISE = ("cheap", "best", "discount", "new", "buy", "top", "quality", "online", "original", "wholesale")
TOWNS = ("Ashford", "Brimley", "Corvale", "Denholm", "Eastwick", "Fairmoor", "Glenrock", "Harlow Bay", "Ironbridge",
         "Juniper Hill", "Kingsmead", "Larkfield", "Milton Cross", "Northgate", "Oakhurst", "Penrose", "Quarry Bank")
SHORT = ("the", "be", "to", "of", "and", "that", "have", "with")  # the stop words of the quality rule
COUNTED = ("likes", "shares", "comments", "views", "followers", "downloads", "upvotes", "reposts")
BUTTONS = ("Sign in", "Sign in to continue", "Log in to leave a reply", "Login", "Register", "Share", "Print", "Reply",
           "Subscribe", "Download", "Next", "Previous")
TEASERS = ("Ten things to know about {} read more...", "Why everybody talks about {} Read more...",
           "Our guide to {} Read more", "What nobody says about {} read more...")
SHOUTED = ("LATEST NEWS ABOUT {}", "SAVE NOW ON {}", "ALL ABOUT {} IN ONE PLACE", "TODAY ONLY: {}")
# fmt: on


def foreign(random: Random, language: str, words: int) -> list[Block]:
    """A page in another language, of sentences from its small grammar."""
    pattern, *slots = GRAMMARS[language]
    names = ("time", "subject", "verb", "object", "place")
    choices = dict(zip(names, (slot.split("|") for slot in slots), strict=True))

    def sentence() -> str:
        return pattern.format(**{name: random.choice(options) for name, options in choices.items()})

    blocks, written = [Block("heading", sentence().rstrip("."))], 0
    while written < words:
        text = " ".join(sentence() for _ in range(random.randint(3, 7)))
        blocks.append(Block("paragraph", text))
        written += len(text.split())
    return blocks


def page_of(title: str, texts: Iterable[str]) -> list[Block]:
    """A heading and paragraphs."""
    return [Block("heading", title), *(Block("paragraph", text) for text in texts)]


def repeated_lines(random: Random, vocabulary: Sequence[str]) -> list[Block]:
    """A shop's listing whose few lines come again and again."""
    lines = [f"Shop for {random.choice(PRAISE)} {thing} with us" for thing in random.sample(THINGS, 6)]
    return page_of("Our whole range", (random.choice(lines) for _ in range(random.randint(25, 60))))


def keyword_list(random: Random, vocabulary: Sequence[str]) -> list[Block]:
    """The same few search phrases in all orders."""
    things = random.sample(THINGS, 3)
    phrases = [f"{random.choice(PRAISE)} {thing}" for thing in things for _ in range(3)]
    texts = (", ".join(random.choice(phrases) for _ in range(30)) + "." for _ in range(random.randint(5, 9)))
    return page_of(f"The best {things[0]} on the web", texts)


def doorway_page(random: Random, vocabulary: Sequence[str]) -> list[Block]:
    """One paragraph, written again for each of a dozen towns."""
    thing = random.choice(THINGS)
    extra = " ".join(random.sample(list(vocabulary), 8))
    pattern = (
        f"Are you looking for {thing} in {{town}}? Our friendly team has been selling {thing} to the people of "
        f"{{town}} for years, and we deliver {thing} to every door with a smile. Known for {extra} and more."
    )
    towns = random.sample(TOWNS, random.randint(7, 14))
    return page_of(f"{thing} near you", (pattern.format(town=town) for town in towns))


def repeated_paragraphs(random: Random, vocabulary: Sequence[str]) -> list[Block]:
    """A notice that is printed over and over between short lines of its own."""
    notice = (
        "This offer is only valid while we have stock, and the prices that you see may change with no further word to "
        f"you. Ask the {random.choice(THINGS)} desk about {' '.join(random.sample(list(vocabulary), 6))} if in doubt."
    )
    own = (" ".join(random.sample(list(vocabulary), 12)) + "." for _ in range(random.randint(5, 10)))
    return page_of("Terms of our offers", (text for line in own for text in (line, notice)))


def bullet_list(random: Random, vocabulary: Sequence[str]) -> list[Block]:
    """A long list and nothing else."""
    items = tuple(
        " ".join(random.sample(list(vocabulary), random.randint(3, 7))) for _ in range(random.randint(40, 80))
    )
    return [Block("heading", "Complete index"), Block("list", items=items)]


def hashtags(random: Random, vocabulary: Sequence[str]) -> list[Block]:
    """Posts that are a third hash signs."""
    drawn = (random.sample(list(vocabulary), 14) for _ in range(random.randint(12, 24)))
    texts = (f"We love the {' '.join(words[:8])} #" + " #".join(words[8:]) for words in drawn)
    return page_of("Posts of this week", texts)


def teasers(random: Random, vocabulary: Sequence[str]) -> list[Block]:
    """Beginnings of articles, each broken off by an ellipsis."""
    drawn = (random.sample(list(vocabulary), 11) for _ in range(random.randint(15, 30)))
    return page_of("More from our authors", (f"When the {' '.join(words)} and..." for words in drawn))


def identifiers(random: Random, vocabulary: Sequence[str]) -> list[Block]:
    """Names made of names: the words of an index are too long."""
    plain = [word for word in vocabulary if word.isalpha()]
    drawn = ([".".join(random.sample(plain, 3)) for _ in range(10)] for _ in range(random.randint(8, 16)))
    texts = (f"In the group of {names[0]} and {' '.join(names[1:])}" for names in drawn)
    return page_of("Index of the names of all classes", texts)


def words_without_grammar(random: Random, vocabulary: Sequence[str]) -> list[Block]:
    """Words without the small words that join them."""
    plain = [word for word in vocabulary if word.isalpha() and word.lower() not in SHORT]
    return page_of("Keywords", (" ".join(random.sample(plain, 25)) for _ in range(random.randint(5, 10))))


def price_list(random: Random, vocabulary: Sequence[str]) -> list[Block]:
    """A price list: too few of its words have letters."""
    texts = []
    for _ in range(random.randint(12, 24)):
        numbers = [f"{random.randint(1, 9999)}.{random.randint(10, 99)}" for _ in range(5)]
        opening = random.choice(("The {} of", "All {} and", "To have {} with", "That {} at", "Of {} in", "Also {}"))
        things = random.sample(list(vocabulary), 4)
        texts.append(f"{opening.format(things[0])} {' '.join(things[1:])}: {' '.join(numbers)}")
    return page_of("Prices of the day", texts)


Kind = Callable[[Random, Sequence[str]], list[Block]]
REPEATING: tuple[Kind, ...] = (repeated_lines, keyword_list, doorway_page, repeated_paragraphs)
UNREADABLE: tuple[Kind, ...] = (bullet_list, hashtags, teasers, identifiers, words_without_grammar, price_list)


def boilerplate(random: Random, words: int) -> list[str]:
    """Different lines of at least ``words`` words that belong to a page and not to its text."""
    lines: dict[str, None] = {}
    while sum(len(line.split()) for line in lines) < words:
        draw = random.random()
        if draw < 0.3:
            line = f"{random.randint(2, 9999)} {random.choice(COUNTED)}"
        elif draw < 0.55:
            line = random.choice(TEASERS).format(random.choice(THINGS))
        elif draw < 0.75:
            line = random.choice(SHOUTED).format(random.choice(THINGS)).upper()
        elif draw < 0.9:
            line = random.choice(BUTTONS)
        else:
            line = random.choice((f"{random.randint(2, 30)} items in cart", str(random.randint(2, 2000))))
        lines[line] = None
    return list(lines)
