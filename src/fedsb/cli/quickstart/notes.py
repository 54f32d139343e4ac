"""Synthetic hospital triage notes, each to be sent to one department.

A note mentions two or three complaints of different departments. Exactly one is why the patient is here; the
others are denied, over, or a relative's. A model has to tell which complaint each "denies", "settled" or
"mother has" belongs to: the words of the note, without their order, leave two or three departments possible.

A checksum puts every note in one of three pools: one for even seeds, one for odd seeds, one for pre-training.
No note is in two of them.
"""

import random
import zlib
from collections.abc import Callable

EXAMPLE = dict[str, str]

DEPARTMENTS = ("cardiology", "dermatology", "gastroenterology", "neurology", "orthopaedics")
HOSPITALS = ("Alderbrook", "Birchfield", "Cedar Hill", "Dunmore", "Eastwick")

# The share of a hospital's notes that go to its first department, its second, and so on; hospital number i
# has department number i first. Over all hospitals the departments are equally frequent.
MIX = (0.4, 0.2, 0.15, 0.15, 0.1)

COMPLAINTS: dict[str, tuple[str, ...]] = {
    "cardiology": (
        "chest pain", "a tight chest", "palpitations", "a racing heart", "skipped heart beats",
        "pressure across the chest", "swollen legs by evening", "a pounding pulse",
    ),
    "dermatology": (
        "an itchy rash on the {part}", "a scaly patch on the {part}", "blisters on the {part}", "itchy skin",
        "a changing mole on the {part}", "hives", "peeling skin on the {part}", "dry cracked skin",
    ),
    "gastroenterology": (
        "stomach cramps", "heartburn", "vomiting", "bloating after meals", "diarrhoea", "acid reflux",
        "burning pain in the belly", "nausea",
    ),
    "neurology": (
        "a numb {part}", "tingling in the {part}", "dizzy spells", "a one sided headache", "slurred speech",
        "a seizure", "double vision", "migraines",
    ),
    "orthopaedics": (
        "a swollen {part}", "a twisted {part}", "a stiff {part}", "a bruised {part}", "a broken {part}",
        "a sprained {part}", "lower back pain", "a sore {part} after a fall",
    ),
}  # fmt: skip
PARTS = ("ankle", "elbow", "hand", "knee", "leg", "shoulder")

# What a clause says of its complaint {c}. Many words occur in several roles on purpose: "no", "since", "not",
# "has" and the relatives settle nothing by themselves, and the cue stands before or after the complaint.
PRESENT = (
    "here for {c} {since}", "presents with {c} {since}", "complains of {c}", "{c} is why {they} came today",
    "{c} {since} and getting worse", "no relief from {c} {since}", "brought in by {rel} with {c}",
    "{c} not improving", "has had {c} {since}", "reason for visit {c}",
)  # fmt: skip
DENIED = ("denies {c}", "denies any {c}", "no {c}", "{c} denied", "has not had {c}", "no sign of {c}")
OVER = (
    "had {c} {past} , none since", "{c} {past} has settled", "{c} resolved {past}", "no longer has {c}",
    "was treated for {c} {past} , now fine", "recovered from {c} {past}",
)  # fmt: skip
FAMILY = (
    "{rel} has {c}", "{rel} had {c} {past}", "family history of {c}", "{c} runs in the family",
    "came with {rel} who has {c}",
)  # fmt: skip
ASIDES = (DENIED, OVER, FAMILY)
NUM_ASIDES = (1, 1, 2)

FILLERS = (
    "walked in unaided", "vitals stable", "no known allergies", "lives alone", "takes aspirin daily",
    "smoker", "bp {bp} over {low}", "works nights", "came by ambulance", "came with {rel}",
    "on blood thinners", "had flu jab {past}",
)  # fmt: skip
RELATIVES = ("mother", "father", "sister", "brother", "son", "daughter")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTHS = ("january", "march", "april", "june", "august", "october")
SINCE = ("since {day}", "for {n} days", "for {n} weeks", "since last night", "x {n} days", "")
PAST = ("last year", "in {month}", "{n} years ago", "last winter", "{n} months ago")
PEOPLE = (
    ("man", "he"), ("male", "he"), ("woman", "she"), ("female", "she"), ("pt", "they"), ("patient", "they"),
)  # fmt: skip
AGES = ("{age} yo {who}", "{age} year old {who}", "{who} aged {age}", "{who} , {age}", "{age} y/o {who}")
JOINTS = (" . ", " . ", " , ", " ; ")

# How a text for pre-training continues. What is done about a complaint relates complaints of one kind, as it
# does in any hospital's own text; the notes to classify never say it.
FOLLOW_UPS = (
    "{c} worse at night", "to be examined for {c}", "{plan} for {c}", "to have {plan}", "{plan} ordered",
    "plan {plan}", "will need {plan}", "{plan} and review in {n} days",
)  # fmt: skip
PLANS = {
    "cardiology": ("ecg", "an echo", "troponin", "a heart monitor"),
    "dermatology": ("steroid cream", "a skin biopsy", "an ointment", "a patch test"),
    "gastroenterology": ("a gastroscopy", "antacids", "a stool sample", "a bland diet"),
    "neurology": ("a head scan", "an eeg", "a reflex test", "a lumbar puncture"),
    "orthopaedics": ("an x-ray", "a plaster cast", "crutches", "a splint"),
}
SPELLINGS = {
    "stomach": "stomache", "swollen": "swolen", "diarrhoea": "diarrhea", "palpitations": "palps",
    "complains": "complaining", "denies": "denys", "with": "w/", "weeks": "wks", "years": "yrs",
    "months": "mths", "year": "yr", "mother": "mum", "father": "dad", "tuesday": "tues", "history": "hx",
    "presents": "presenting", "resolved": "resolvd", "vomiting": "vomitting", "shoulder": "shouldr",
}  # fmt: skip
SPELLING_RATE = 0.1


def generate(num_examples: int, seed: int) -> list[EXAMPLE]:
    """Different notes with their `hospital` and `department`, always the same ones for a seed.

    The first n of a longer list are the list of length n.
    """
    rng = random.Random(f"notes {seed}")
    examples: list[EXAMPLE] = []
    seen: set[str] = set()
    while len(examples) < num_examples:
        hospital = rng.randrange(len(HOSPITALS))
        department = _department_at(rng, hospital)
        text = _drawn_from_pool(lambda: _note(rng, department), seed % 2)  # noqa: B023
        if text not in seen:
            seen.add(text)
            examples.append({"hospital": HOSPITALS[hospital], "note": text, "department": department})
    return examples


def train_and_test(num_train: int, num_test: int, seed: int) -> tuple[list[EXAMPLE], list[EXAMPLE]]:
    """A training and a test set without a note in common, from the even and the odd seed of a pair."""
    return generate(num_train, 2 * seed), generate(num_test, 2 * seed + 1)


def pretraining_text(num_sentences: int, seed: int) -> list[str]:
    """Unlabelled text of a broader grammar than the notes: notes, and notes with a follow-up, long or short.

    No department is named. A follow-up takes up the present complaint again, as longer notes do.
    """
    rng = random.Random(f"pre-training {seed}")
    return [_drawn_from_pool(lambda: _sentence(rng), 2) for _ in range(num_sentences)]


def _drawn_from_pool(draw: Callable[[], str], pool: int) -> str:
    """Draws until a text falls into the pool."""
    while zlib.crc32((text := draw()).encode()) % 3 != pool:
        pass
    return text


def _department_at(rng: random.Random, hospital: int) -> str:
    """A department by the hospital's mix: the list of departments, turned to start at the hospital's own."""
    turned = DEPARTMENTS[hospital:] + DEPARTMENTS[:hospital]
    return rng.choices(turned, weights=MIX)[0]


def _sentence(rng: random.Random) -> str:
    """One text for pre-training: a note, or a long or short one with a follow-up."""
    department = rng.choice(DEPARTMENTS)
    kind = rng.random()
    if kind < 0.15:
        return _note(rng, department)
    return _note(rng, department, follow_up=True, short=kind < 0.6)


def _note(rng: random.Random, department: str, follow_up: bool = False, short: bool = False) -> str:
    """A note whose present complaint is the department's, with an aside or two about others."""
    person = rng.choice(PEOPLE)
    present = _complaint(rng, department)
    others = rng.sample([name for name in DEPARTMENTS if name != department], k=rng.choice(NUM_ASIDES))
    clauses = [_clause(rng, rng.choice(ASIDES), _complaint(rng, name), person) for name in others]
    clauses = [*clauses[: 1 if short else None], _clause(rng, PRESENT, present, person)]
    fillers = 0 if short else rng.choice((0, 0, 1, 1))
    clauses += [_filled(rng, text, person) for text in rng.sample(FILLERS, k=fillers)]
    rng.shuffle(clauses)
    if follow_up:
        plan = rng.choice(PLANS[department])
        clauses.append(_clause(rng, FOLLOW_UPS, present, person).replace("{plan}", plan))
    if not short and rng.random() < 0.85:
        clauses.insert(0, _filled(rng, rng.choice(AGES), person))
    return _spelt(rng, _joined(rng, clauses))


def _complaint(rng: random.Random, department: str) -> str:
    """One of the department's complaints, at some part of the body where it needs one."""
    return rng.choice(COMPLAINTS[department]).replace("{part}", rng.choice(PARTS))


def _clause(rng: random.Random, role: tuple[str, ...], complaint: str, person: tuple[str, str]) -> str:
    """A clause that puts the complaint in a role."""
    text = rng.choice(role)
    if text in ("denies any {c}", "no {c}"):
        complaint = complaint.removeprefix("a ").removeprefix("an ")
    return _filled(rng, text.replace("{c}", complaint), person)


def _filled(rng: random.Random, text: str, person: tuple[str, str]) -> str:
    """The text with its slots filled in."""
    text = text.replace("{since}", rng.choice(SINCE)).replace("{past}", rng.choice(PAST))
    who, they = person
    number, age, top, low = rng.randint(2, 9), rng.randint(16, 92), rng.randint(10, 17), rng.randint(6, 9)
    day, month, relative = rng.choice(DAYS), rng.choice(MONTHS), rng.choice(RELATIVES)
    slots = {"n": number, "age": age, "bp": top * 10, "low": low * 10, "day": day, "month": month}
    return text.format(who=who, they=they, rel=relative, plan="{plan}", **slots).strip()


def _joined(rng: random.Random, clauses: list[str]) -> str:
    """The clauses with a stop, comma or semicolon between them."""
    text = clauses[0]
    for clause in clauses[1:]:
        text += rng.choice(JOINTS) + clause
    return text


def _spelt(rng: random.Random, text: str) -> str:
    """The text with some words abbreviated or misspelt, and its punctuation set the usual way."""
    words = [SPELLINGS.get(word, word) if rng.random() < SPELLING_RATE else word for word in text.split()]
    return " ".join(words).replace(" .", ".").replace(" ,", ",").replace(" ;", ";")
