"""``fedbias sweep``: what the command itself checks and says; whole sweeps are in tests/sweep/test_sweep.py."""

import pytest

from fedbias_plugin.cli.main import main


def said(capsys, *arguments):
    code = main(["sweep", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table9",), "experiment table9: there is no such file, and none of ours is called so"),
        (("table1", "--model", "gemma"), "--model gemma: there is no such file"),
        (("table1", "--jobs", "0"), "--jobs must be at least 1, got 0"),
        (("table1", "--jobs", "two"), "--jobs 'two' (command line) must be a whole number"),
        (("table1", "--launcher", "slurm", "--slurm_time", "0"), "--slurm_time must be at least 1, got 0"),
        (("table1", "--seeds", "a"), "--seeds a: give whole numbers"),
        (("table1", "--seed", "1"), "unknown name 'seed'. Did you mean 'seeds'"),
        (("table1", "--output_dir", "x"), "unknown name 'output_dir'"),
        (("table1", "--model", "MODEL"), "/nowhere/model': there is no such folder"),
        (("table1", "--fed_alg", "fedavg"), "--fed_alg is what table1 varies"),
        (("table1", "--num_round", "1"), "unknown name 'num_round'"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(arguments, message, capsys, tmp_path, monkeypatch):
    model = tmp_path / "model.yaml"
    model.write_text("name: mine\narguments: {model_name_or_path: /nowhere/model}\n")
    monkeypatch.chdir(tmp_path)
    code, _, err = said(capsys, *(str(model) if part == "MODEL" else part for part in arguments))
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == [model]


def test_help_names_what_there_is(capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    known = "algorithms, defence, defence_attacks, defence_clients, defence_dialects, defence_insider, defence_sizes"
    others = "dp_cda, fedpsf, figure1, fm_paradox, fm_paradox_small, lambda, offsite, offsite_code, offsite_dolly"
    last = "offsite_gsm8k, participation, table1, table2, table3"
    assert f"{known}, {others}, {last}" in shown
    assert "distilgpt2, gemma2_2b, gemma2_9b, llama2_7b, llama3_8b, mistral_7b, phi3_mini, tiny, tiny6" in shown
    assert "--output_dir TEXT" not in shown
    assert "--slurm_time N minutes a run may take before it is requeued and goes on (default: 1440)" in shown


def test_a_plan_on_bundled_data_says_so(capsys, tmp_path, caplog):
    code, _, err = said(capsys, "figure1", "--data_dir", "mini", "--dry_run", "--output", str(tmp_path / "out"))
    assert code == 0
    assert "Using the bundled mini data (an invented world)" in err + caplog.text


def test_the_plan_of_a_large_model_says_what_memory_it_takes(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = said(capsys, "table2", "--model", "gemma2_2b", "--data_dir", "mini", "--dry_run")
    assert code == 0
    assert "needs about 16 GiB of GPU memory a run to train adapters, by the model's file" in out
    assert "needs about 48 GiB of GPU memory a run to train every weight, by the model's file" in out
    assert "36 runs: 36 to do" in out
    assert list(tmp_path.iterdir()) == []


def test_titles_and_folders_cannot_move_the_cursor(capsys, tmp_path):
    experiment = tmp_path / "mine.yaml"
    experiment.write_text('name: mine\ntitle: "evil \\e[31mRED"\nseeds: [1]\ngrid: {scenario: 3C}\n')
    code, out, _ = said(
        capsys, str(experiment), "--data_dir", "mini", "--dry_run", "--output", str(tmp_path / "o\x1b[2J")
    )
    assert code == 0
    assert "\x1b" not in out
    assert "evil \\x1b[31mRED" in out


@pytest.mark.parametrize("output", ["/dev/null/x", "/proc/nope"])
def test_a_folder_that_cannot_be_made_is_named(output, capsys):
    code, _, err = said(capsys, "table1", "--data_dir", "mini", "--output", output)
    assert code == 2
    assert f"--output {output} cannot be made" in err
