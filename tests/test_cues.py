import pytest

from baton_diffusers.cues import (
    LONGEST_CUE,
    Cue,
    Sheet,
    Turn,
    format_cues,
    format_sheet,
    format_timestamp,
    format_turns,
    parse_cues,
    parse_sheet,
    sheet_turns,
    spoken_turns,
)


def test_a_sheet_is_text_in_order_of_time_and_reads_back():
    cues = [Cue(1.5625, "purple face three"), Cue(0.5, "red ball")]
    sheet = format_cues(cues)
    assert sheet == "<|0.50|> red ball <|1.56|> purple face three"
    assert parse_cues(sheet) == [(0.5, "red ball"), (1.56, "purple face three")]
    assert parse_cues("") == [] and format_cues([]) == ""


def test_a_sheet_begins_with_its_cast():
    text = (
        "red box middle; old orange face right <|0.50|> red box hits old orange face <|1.25|> old orange face says two"
    )
    sheet = parse_sheet(text)
    assert sheet.cast == (("red box", "middle"), ("old orange face", "right"))
    assert sheet.cues == ((0.5, "red box hits old orange face"), (1.25, "old orange face says two"))
    assert format_sheet(sheet) == text
    assert parse_sheet(text.replace("; ", " ;").replace(" <", "<").replace("> ", ">")) == sheet
    assert parse_cues(text) == list(sheet.cues)


@pytest.mark.parametrize("text", ["", "red box middle", "<|0.50|> red box", "red box left; blue box right"])
def test_both_parts_of_a_sheet_may_be_empty(text):
    assert format_sheet(parse_sheet(text)) == text
    assert parse_sheet("") == Sheet()


def test_timestamps_on_a_grid_of_sixteenths_stay_apart():
    stamps = [format_timestamp(i / 16) for i in range(160)]
    assert len(set(stamps)) == 160
    assert [round(parse_cues(f"{stamp} x")[0].time * 16) for stamp in stamps] == list(range(160))


@pytest.mark.parametrize(
    "sheet, message",
    [
        ("ball <|0.50|> ball", "'ball' in a sheet's cast needs a name and a place"),
        ("red ball left;; blue box right", "'' in a sheet's cast needs a name and a place"),
        ("red ball left; red ball right", "'red ball' is twice"),
        ("<|soon|> red ball", r"'<\|soon\|>' is no timestamp"),
        ("<|1.00|> red ball <|0.50|> red ball", r"'<\|0.50\|>' follows 1.0 seconds"),
        ("<|-1|> red ball", r"'<\|-1\|>' follows 0.0"),
        ("<|nan|> red ball", "order of time"),
    ],
)
def test_what_is_no_sheet_is_refused(sheet, message):
    with pytest.raises(ValueError, match=message):
        parse_cues(sheet)


def test_turns_are_runs_of_one_actor():
    sheet = parse_sheet(
        "red ball left; blue bell right <|0.50|> red ball bounces <|0.75|> red ball bounces <|1.00|> gong"
    )
    turns = sheet_turns(sheet, 1.25)
    assert turns == [Turn("red ball", ("bounces", "bounces"), 0.5, 0.5), Turn("gong", ("",), 1.0, 0.25)]
    assert turns[0].what == "bounces 2x"
    assert sheet_turns(sheet, 9.0)[1].seconds == LONGEST_CUE
    assert sheet_turns(sheet, 9.0, ["gong", "blue bell"])[0].who == "red ball bounces"
    assert sheet_turns(Sheet(), 1.0) == []


def test_speech_in_a_prompt_is_in_its_order_and_open_in_time():
    turns = spoken_turns(
        "A hall. The <b>old</b> man says, <S>One two three four five<E> and she answers: <S>Six<E>.<AUDCAP>x<ENDAUDCAP>"
    )
    assert [(turn.who, turn.deeds, turn.start) for turn in turns] == [
        ("The <b>old</b> man says", ('"One two three four five"',), None),
        ("she answers", ('"Six"',), None),
    ]
    assert turns[0].seconds == 2.0
    assert format_turns(turns).splitlines()[2].split("  ")[0] == "she answers"
    assert spoken_turns("<S>never closed") == []
