"""The languages of Stage's prompts and of its cue sheets, as a checkpoint's tokenizers carry them."""

from collections import Counter
from collections.abc import Iterable

from ..prompt_language import PromptLanguage, words_of
from .prompts import EVENT_VERBS
from .scene import COLOURS, DIGITS, KINDS, SPOTS, VOICES
from .wordings import TRAIN


PROMPT_EXAMPLE = "A red ball on the left bounces twice, then a purple face on the right says three nine."
SHEET_EXAMPLE = "red ball left; purple face right <|0.50|> red ball bounces <|1.25|> purple face says three"
LEAST = 3  # times that a word has to be read to be learnt

# What people write that tells nothing of a scene.
FILLERS = """
a able about above actually again ah all almost alone along already also although always am an and another any anybody anyone anything
apparently are around as aside at away awesome back background basically be beautiful because been before behind being below beside besides
best better between big bit black both brief briefly bring but by call called camera can cannot cartoon certain change cheers clean clear
clearly clip close colored colors colour coloured colours come comes completely could crisp cut dark day dear definitely detailed did do
does doing done down during each either else empty end ends enough entire even eventually ever every everybody everyone everything exactly
example fade fair fast few film finally fine first floor following for frame from front full fun funny further gentle gently get gets give
given gives go goes going good got great ground had half happen happening happens has have having he help her here hers high him
himself his hold hope how however i idea if image immediately in indeed inside instead into is isn it its itself just keep kind kindly last
later least left less let lets like little ll long look looking looks lot loud loudly low lovely made make makes many may maybe me mean
meanwhile might mind minute moment more most move moves movie moving much must my near nearby neat need needs never new next nice no nobody
none nor not nothing now of off often ok okay old on once one only onto or other others our out outside over own part people perfect perhaps
person picture place plain play please pls plus possible pretty prompt put quality question quick quickly quiet quietly quite rather re ready
real realistic really right room said same scene screen second seconds see seems seen shall she short shot should show showing shown shows
side silent silently simple simply since single slow slowly small so some somebody someone something sometimes somewhere soon sort sound
sounds space stage start starting starts stay stays still stop story style such suddenly sure sweet take takes tell than thank thanks that the
their them themselves then there these they thing things think this those though three through thus time times tiny title to together too top
total toward towards try turn two under until up upon us use using usual ve very video view visible voice wait want wants was watch way we
well were what when where whether which while white who whole whose why will wish with within without word words would yeah yes yet you your
""".split()


def stage_language(texts: Iterable[str]) -> PromptLanguage:
    """
    The language of Stage's prompts.

    Args:
        texts: Prompts of training: words that they have a few times are learnt.
    """
    counts = Counter(word for text in texts for word in words_of(text))
    learnt = {word for word, count in counts.items() if count >= LEAST}
    names = [
        name for names in (*TRAIN.kinds.values(), *TRAIN.people.values(), *TRAIN.voices.values()) for name in names
    ]
    heads = [words_of(name.split(" with ")[0])[-1] for name in names]
    subjects = tuple(dict.fromkeys((*KINDS, *heads)))
    return PromptLanguage(PROMPT_EXAMPLE, frozenset(learnt | set(FILLERS) | set(subjects)), subjects)


def sheet_language() -> PromptLanguage:
    """The language of Stage's cue sheets."""
    words = (*KINDS, *COLOURS, *VOICES, *SPOTS, *DIGITS, *EVENT_VERBS.values())
    return PromptLanguage(SHEET_EXAMPLE, frozenset(words))
