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
    assert turns == [
        Turn("red ball", ("bounces", "bounces"), 0.5, 0.5, (0.5, 0.75)),
        Turn("gong", ("",), 1.0, 0.25, (1.0,)),
    ]
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


# Edits

SHEET = parse_sheet(
    "red box left; orange face right <|0.50|> red box hits orange face <|1.00|> orange face says two <|1.44|> orange face says six"
)


@pytest.mark.parametrize(
    "command, sheet",
    [
        ("move 1 0.25", "red box left; orange face right <|0.50|> red box hits orange face <|1.25|> orange face says two <|1.44|> orange face says six"),
        ("move 1 0.5 2", format_sheet(SHEET).replace("1.00", "1.50").replace("1.44", "1.94")),
        ("retime 2 0.25", "red box left; orange face right <|0.25|> orange face says six <|0.50|> red box hits orange face <|1.00|> orange face says two"),
        ("delete 0", "red box left; orange face right <|1.00|> orange face says two <|1.44|> orange face says six"),
        ("duplicate 0 2", format_sheet(SHEET) + " <|2.50|> red box hits orange face"),
        ("reword 1 'says  nine'", format_sheet(SHEET).replace("two", "nine")),
        ("revoice 1 'red box'", format_sheet(SHEET).replace("orange face says two", "red box says two")),
        ("add_event 2.5 'red box hits orange face'", format_sheet(SHEET) + " <|2.50|> red box hits orange face"),
        ("move_actor 'red box' middle", format_sheet(SHEET).replace("left", "middle")),
        ("swap 'red box' 'orange face'", format_sheet(SHEET).replace("box left; orange face right", "box right; orange face left")),
        ("recolour 'orange face' purple", format_sheet(SHEET).replace("orange", "purple")),
        ("add_actor 'blue bell' middle", format_sheet(SHEET).replace("right", "right; blue bell middle")),
        ("remove_actor 'orange face'", "red box left"),
    ],
)  # fmt: skip
def test_an_edit_changes_what_it_says_and_no_more(command, sheet):
    assert format_sheet(SHEET.edit(command)) == sheet


@pytest.mark.parametrize(
    "command, message",
    [
        ("move 3 1", "no event 3: they go from 0 to 2"),
        ("move -1 1", "no event -1"),
        ("move 0 -1", "cannot happen at -0.5 seconds"),
        ("retime 0 nan", "cannot happen at nan"),
        ("reword 0 ' '", "needs a deed"),
        ("reword 0 'says; two'", "cannot stand in a sheet"),
        ("revoice 0 'blue ball'", "no actor 'blue ball'.*'red box', 'orange face'"),
        ("add_event 1 'blue ball bounces'", "begins with no actor of the cast"),
        ("move_actor 'red box' right", "'right' is the place of 'orange face'"),
        ("move_actor 'red box' 'far left'", "is no place"),
        ("recolour 'red box' 'dark blue'", "cannot become"),
        ("add_actor 'red box' middle", "cannot be added"),
        ("add_actor 'blue box' left", "'left' is the place of 'red box'"),
        ("paint 'red box'", "begins with none of move, retime"),
        ("move 2 1 1", "no events go from 2 to 1"),
        ("move 1 1 3", "no event 3"),
        ("move first 1", "not of the form 'move EVENT SECONDS LAST'"),
        ("move 1", "not of the form 'move EVENT SECONDS LAST'"),
        ("recolour 'red box", "no closing quotation"),
        ("", "begins with none of"),
    ],
)
def test_an_edit_that_the_sheet_does_not_allow_is_refused(command, message):
    with pytest.raises(ValueError, match=message):
        SHEET.edit(command)


@pytest.mark.parametrize(
    "sheet, prompt",
    [
        ("", "Nothing moves."),
        ("red ball left", "A red ball is on the left. Nothing moves."),
        ("<|0.50|> applause", "Applause once."),
        (
            "red ball left; orange face stage <|0.5|> red ball bounces <|1|> red ball bounces <|2|> orange face says two <|3|> orange face says six",
            "A red ball is on the left and an orange face is (stage). The red ball bounces twice, then the orange face says two six.",
        ),
        (
            "red box left; blue bell right <|0.5|> red box hits blue bell <|1|> blue bell rings <|2|> blue bell falls",
            "A red box is on the left and a blue bell is on the right. The red box hits the blue bell, then the blue bell rings and falls.",
        ),
    ],
)  # fmt: skip
def test_a_sheet_is_told_in_english(sheet, prompt):
    assert parse_sheet(sheet).to_prompt() == prompt
