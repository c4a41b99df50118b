import pytest

from baton_diffusers.cues import Cue, Sheet, format_cues, format_sheet, format_timestamp, parse_cues, parse_sheet


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
