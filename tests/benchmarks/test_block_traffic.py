from tests.scripts import load_script


def test_a_block_moves_at_most_a_fifth_more_than_wans(capsys):
    module = load_script("benchmarks/block_traffic.py")
    assert module.main(["--grid", "3", "8", "8", "--heads", "4", "--ffn-dim", "512"])
    ratios = [float(line.split("|")[4]) for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(ratios) == 2 and all(0.5 < ratio <= module.LIMIT for ratio in ratios)
