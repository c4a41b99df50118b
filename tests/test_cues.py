import pytest

from baton_diffusers.cues import Cue, format_cues, format_timestamp, parse_cues


def test_a_sheet_is_text_in_order_of_time_and_reads_back():
    cues = [Cue(1.5625, "purple face three"), Cue(0.5, "red ball")]
    sheet = format_cues(cues)
    assert sheet == "<|0.50|> red ball <|1.56|> purple face three"
    assert parse_cues(sheet) == [(0.5, "red ball"), (1.56, "purple face three")]
    assert parse_cues("") == [] and format_cues([]) == ""


def test_timestamps_on_a_grid_of_sixteenths_stay_apart():
    stamps = [format_timestamp(i / 16) for i in range(160)]
    assert len(set(stamps)) == 160
    assert [round(parse_cues(f"{stamp} x")[0].time * 16) for stamp in stamps] == list(range(160))


@pytest.mark.parametrize(
    "sheet, message",
    [
        ("red ball <|0.50|>", "begins with a timestamp.*'red ball '"),
        ("<|soon|> red ball", r"'<\|soon\|>' is no timestamp"),
        ("<|1.00|> red ball <|0.50|> red ball", r"'<\|0.50\|>' follows 1.0 seconds"),
        ("<|-1|> red ball", r"'<\|-1\|>' follows 0.0"),
        ("<|nan|> red ball", "order of time"),
    ],
)
def test_what_is_no_sheet_is_refused(sheet, message):
    with pytest.raises(ValueError, match=message):
        parse_cues(sheet)
