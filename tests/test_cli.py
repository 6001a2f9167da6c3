"""The command line as a user meets it: each test starts the program itself."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import pgplan as pg
from pgplan.engines import exporter_names

NOTEBOOKS = Path(pg.__file__).parents[1] / "notebooks"
PLAN = "plan llama-3.1-70b --gpu H200 --pp 4"


def pgplan(words, *, cwd, env=None, **options):
    return subprocess.run(
        [sys.executable, "-m", "pgplan", *shlex.split(words)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        **{"capture_output": True, "text": True, "timeout": 60, "check": False, **options},
    )


@pytest.fixture
def folder(tmp_path):
    """Return a folder with the inputs that the tests of bad input name."""
    tmp_path.joinpath("broken.json").write_text('{"architectures": [')
    tmp_path.joinpath("list.json").write_text("[1, 2]")
    tmp_path.joinpath("deep.json").write_text("[" * 100_000)
    tmp_path.joinpath("binary.json").write_bytes(b"\xff\xfe\x00")
    tmp_path.joinpath("empty").mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "vocab_size": 32000,
        "max_position_embeddings": 8192,
    }
    tmp_path.joinpath("no_layers.json").write_text(json.dumps(config))
    tmp_path.joinpath("zero_layers.json").write_text(json.dumps({**config, "num_hidden_layers": 0}))
    tmp_path.joinpath("a_plan.json").write_text(json.dumps({"schema_version": 1, "stages": []}))
    unknown = {**config, "num_hidden_layers": 8, "architectures": ["NovelForCausalLM"]}
    tmp_path.joinpath("unknown.json").write_text(json.dumps(unknown))
    return tmp_path


# Each row: the words, and what the one line must hold: the rule or value, and the mend.
BAD_INPUT = {
    "wrong path": ("plan nowhere/config.json --gpu H200 --pp 4", "nowhere/config.json", "config.json or of"),
    "folder without config": ("plan ./empty --gpu H200 --pp 4", "must hold config.json", "another folder"),
    "unknown model": ("plan lama-3.1-70b --gpu H200 --pp 4", "'lama-3.1-70b'", "llama-3.1-70b"),
    "broken JSON": ("plan broken.json --gpu H200 --pp 4", "must be JSON", "line 1 column"),
    "JSON too deep": ("plan deep.json --gpu H200 --pp 4", "deep.json", "give"),
    "not an object": ("plan list.json --gpu H200 --pp 4", "JSON object, got list", "config.json"),
    "not text": ("plan binary.json --gpu H200 --pp 4", "binary.json cannot be read", "give"),
    "config without layers": (
        "plan no_layers.json --gpu H200 --pp 4",
        "num_hidden_layers",
        "own config.json",
    ),
    "zero layers": ("plan zero_layers.json --gpu H200 --pp 4", "num_hidden_layers", "got 0"),
    "a plan": ("plan a_plan.json --gpu H200 --pp 4", "a_plan.json is a plan", "'pgplan export'"),
    "unknown architecture": ("plan unknown.json --gpu H200 --pp 4", "got NovelForCausalLM", "nearest are"),
    "unknown GPU": ("plan llama-3.1-70b --gpu H2000 --pp 4", "'H2000'", "pgplan gpus"),
    "ambiguous GPU": ("plan llama-3.1-70b --gpu A100 --pp 4", "'A100'", "'A100 80GB SXM4'"),
    "empty GPU": ("plan llama-3.1-70b --gpus H200,,H200", "got ''", "pgplan gpus"),
    "no GPU": ("plan llama-3.1-70b --pp 4", "--gpu --gpus is required", "--help"),
    "two kinds of GPUs": (f"{PLAN} --gpus H200,H200", "not allowed with", "--help"),
    "no pp": ("plan llama-3.1-70b --gpu H200", "number of stages", "--pp 4"),
    "pp 0": ("plan llama-3.1-70b --gpu H200 --pp 0", "not 0", "give 1 or more"),
    "pp negative": ("plan llama-3.1-70b --gpu H200 --pp -1", "not -1", "give 1 or more"),
    "pp above layers": ("plan llama-3.1-70b --gpu H200 --pp 81", "cannot fill 81", "80 or less"),
    "pp absurd": ("plan llama-3.1-70b --gpu H200 --pp 100000000000", "cannot fill", "80 or less"),
    "pp a word": ("plan llama-3.1-70b --gpu H200 --pp four", "such as 4, got 'four'", "--help"),
    "pp in other digits": ("plan llama-3.1-70b --gpu H200 --pp ４", "such as 4, got '４'", "--help"),
    "pp against gpus": ("plan llama-3.1-70b --gpus H200,L40S --pp 3", "gives 2 and --pp is 3", "3 names"),
    "tp not dividing": (f"{PLAN} --tp 3", "64 heads", "tp_size 1, 2, 4"),
    "letters": (f"{PLAN} --split a,b,c,d", "'a,b,c,d' has 'a'", "e.g. 20,20,20,20"),
    "wrong length": (f"{PLAN} --split 40,40", "'40,40' has 2 and pp_size is 4", "give 4 counts"),
    "wrong sum": (f"{PLAN} --split 20,20,20,21", "gives 81", "take 1 off"),
    "zero": (f"{PLAN} --split 0,40,20,20", "has '0'", "e.g. 20,20,20,20"),
    "negative first": (f"{PLAN} --split -1,41,20,20", "has '-1'", "e.g. 20,20,20,20"),
    "negative later": (f"{PLAN} --split 41,-1,20,20", "has '-1'", "e.g. 20,20,20,20"),
    "trailing comma": (f"{PLAN} --split 20,20,20,20,", "has 5 and pp_size is 4", "give 4 counts"),
    "empty override": (f"{PLAN} --split ''", "'' has none", "leave the override out"),
    "pins too large": (f"{PLAN} --split '40,*,*,39'", "leaves 1 for 2 free stages", "take 1 off"),
    "bad split beside": (f"{PLAN} --compare-with 80", "pp_size is 4", "give 4 counts"),
    "context too long": (f"{PLAN} --max-model-len 131073", "context of 131072", "give at most that"),
    "request too long": (f"{PLAN} --max-model-len 2000", "2304", "raise max_model_len"),
    "utilization 0": (f"{PLAN} --memory-utilization 0", "above 0 and at most 1, got 0", "e.g. 0.9"),
    "utilization above 1": (f"{PLAN} --memory-utilization 1.01", "got 1.01", "e.g. 0.9"),
    "utilization negative": (f"{PLAN} --memory-utilization -0.5", "got -0.5", "e.g. 0.9"),
    "NaN": (f"{PLAN} --memory-utilization nan", "got nan", "e.g. 0.9"),
    "infinite": (f"{PLAN} --memory-utilization -inf", "got -inf", "e.g. 0.9"),
    "no number": (f"{PLAN} --memory-utilization most", "such as 0.9, got 'most'", "--help"),
    "count NaN": (f"{PLAN} --concurrency nan", "such as 4, got 'nan'", "--help"),
    "count 0": (f"{PLAN} --prompt-tokens 0", "prompt_tokens", "at least 1"),
    "layers negative": (f"{PLAN} --layers -1", "at least 1, got -1", "give e.g. 80"),
    "layers absurd": (f"{PLAN} --layers 99999999", "at most 10000", "99999999"),
    "unknown objective": (f"{PLAN} --objective speed", "'speed'", "kv, decode, prefill"),
    "unknown engine": (f"{PLAN} --engine vlm", "'vlm'", "'vllm'"),
    "bad version": (f"{PLAN} --engine vllm==new", "'new'", "e.g. vllm=="),
    "unknown dtype": (f"{PLAN} --dtype int3", "'int3'", "bfloat16"),
    "unknown KV dtype": (f"{PLAN} --kv-dtype int3", "'int3'", "fp8"),
    "expert parallelism": (f"{PLAN} --expert-parallel", "--expert-parallel", "give --tp"),
    "unknown option": (f"{PLAN} --pipeline 4", "--pipeline 4", "pgplan plan --help"),
    "abbreviated option": (f"{PLAN} --conc 4", "--conc 4", "pgplan plan --help"),
    "two documents": (f"{PLAN} --json --compare-with default", "--json prints one plan", "leave one"),
    "no such folder": (f"{PLAN} --png nowhere/plan.png", "nowhere/plan.png", "a folder that exists"),
    "output twice": (f"{PLAN} --png plan.svg", "two go to plan.svg", "rename one"),
    "output twice by a link": (
        f"{PLAN} --png empty/../plan.svg",
        "two go to empty/../plan.svg",
        "rename one",
    ),
    "output without a name": (f"{PLAN} --png ''", "goes to a file, got ''", "give a name"),
    "output to a dash": (f"{PLAN} --report -", "goes to a file, got '-'", "--json to print it"),
    "output is a folder": (f"{PLAN} --png empty", "empty is not", "a file name"),
}


@pytest.mark.parametrize("row", BAD_INPUT)
def test_bad_plan_input_is_one_line_and_writes_nothing(row, folder):
    words, *fragments = BAD_INPUT[row]
    before = sorted(folder.rglob("*"))
    done = pgplan(f"{words} -o plan.json --svg plan.svg", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pgplan: ")
    assert done.stderr.count("\n") == 1
    for fragment in fragments:
        assert fragment in done.stderr
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ("", "COMMAND"),
        ("plot", "'plot'"),
        ("models --jsn", "--jsn"),
        ("export nowhere.json --to vllm", "nowhere.json"),
        ("export broken.json --to vllm", "must be JSON"),
        ("export deep.json --to vllm", "nested"),
        ("export binary.json --to vllm", "UTF-8"),
        ("export list.json --to vllm", "schema_version"),
        ("calibrate qwen3-0.6b -o a_plan.json", "a_plan.json cannot be read: a calibration must be"),
        ("calibrate qwen3-0.6b --gpu-count -1", "got -1; leave it out for all"),
        ("export empty --to vllm", "empty"),
    ],
)
def test_other_bad_input_is_one_line(words, fragment, folder):
    done = pgplan(words, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pgplan: ")
    assert done.stderr.count("\n") == 1
    assert fragment in done.stderr


def test_a_plan_that_was_edited_is_refused_by_its_file(tmp_path):
    pgplan(f"{PLAN} --split 20,21,20,19 -o plan.json", cwd=tmp_path)
    data = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**data, "split": [20, 20, 20, 20]}))
    for command in ("export", "verify", "check --log plan.json"):
        done = pgplan(f"{command} plan.json", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith("pgplan: plan.json cannot be read: plan's split 20,20,20,20 must be")
        assert "with split='20,20,20,20'" in done.stderr


def test_a_line_break_in_a_name_stays_on_the_line(tmp_path):
    done = pgplan("plan './two\nlines.json' --gpu H200 --pp 4", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_plan_prints_a_report_and_what_to_give_to_the_engine(tmp_path):
    done = pgplan(f"{PLAN} --split 20,21,20,19 --max-model-len 8192", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "llama-3.1-70b on 4 x H200 SXM 141GB" in done.stdout
    assert "export VLLM_PP_LAYER_PARTITION=20,21,20,19\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_plan_tells_what_the_split_costs_against_the_engines_own(tmp_path):
    assert "\nAgainst vLLM's own split 20,20,20,20: decode +" in pgplan(PLAN, cwd=tmp_path).stdout
    assert "This is vLLM's own split." in pgplan(f"{PLAN} --split default", cwd=tmp_path).stdout
    assert "own split" not in pgplan("plan llama-3.1-8b --gpu H200 --pp 1", cwd=tmp_path).stdout


def test_a_plan_that_does_not_fit_is_reported_in_full_and_exits_1(tmp_path):
    done = pgplan("plan llama-3.1-70b --gpu L4 --pp 4 -o plan.json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "Does not fit" in done.stdout
    assert "it would fit with" in done.stdout
    assert "VLLM_PP_LAYER_PARTITION" not in done.stdout
    assert not pg.Plan.from_json((tmp_path / "plan.json").read_text()).fits


def test_free_stages_are_filled_even_where_nothing_fits(tmp_path):
    done = pgplan("plan llama-3.1-70b --gpu L4 --pp 4 --split '77,*,*,*'", cwd=tmp_path)
    assert done.returncode == 1
    assert "77,1,1,1" in done.stdout


@pytest.mark.parametrize(("gpu", "code"), [("H200", 0), ("L4", 1)])
def test_json_is_one_document_and_nothing_else(gpu, code, tmp_path):
    done = pgplan(f"plan llama-3.1-70b --gpu {gpu} --pp 4 --json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (code, "")
    document = json.loads(done.stdout)
    assert document["fits"] is (code == 0)
    assert document["schema_version"] == 1


def test_the_written_plan_is_the_one_that_the_library_makes(tmp_path):
    done = pgplan(
        "plan qwen3-30b-a3b --gpus H200,L40S --tp 2 --engine sglang --objective kv --prompt-tokens 512"
        " --output-tokens 128 --concurrency 32 --max-model-len 4096 --max-num-batched-tokens 2048"
        " --max-num-seqs 64 --memory-utilization 0.8 --kv-dtype fp8 --layers 40 -o plan.json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    expected = pg.plan(
        pg.load_model("qwen3-30b-a3b").with_layers(40),
        pg.Cluster.mixed(["H200", "L40S"], tp_size=2),
        workload=pg.Workload(
            prompt_tokens=512,
            output_tokens=128,
            concurrency=32,
            max_model_len=4096,
            max_num_batched_tokens=2048,
            max_num_seqs=64,
            memory_utilization=0.8,
            kv_dtype="fp8",
        ),
        engine="sglang",
        objective="kv",
    )
    assert pg.Plan.from_json((tmp_path / "plan.json").read_text()) == expected


def test_an_unknown_plain_decoder_is_read_on_request(folder):
    config = json.loads((folder / "unknown.json").read_text())
    (folder / "unknown.json").write_text(json.dumps({**config, "num_key_value_heads": 16}))
    done = pgplan("plan unknown.json --assume llama --dtype float16 --gpu L40S --pp 2 --json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["dtype"] == "float16"


def test_pictures_are_written(tmp_path):
    done = pgplan(f"{PLAN} --svg plan.svg --png plan.png", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "plan.svg").read_text().startswith("<svg")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_compare_with_tells_what_changes(tmp_path):
    done = pgplan(f"{PLAN} --split 20,21,20,19 --compare-with default", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "A  20,20,20,20\nB  20,21,20,19\n" in done.stdout
    assert done.stdout.count("llama-3.1-70b on 4 x H200 SXM 141GB, vllm") == 2


def test_output_does_not_replace_what_stdout_goes_to(tmp_path):
    for place in ("/dev/stdout", "report.txt"):
        with (tmp_path / "report.txt").open("w") as report:
            done = pgplan(f"{PLAN} -o {place}", cwd=tmp_path, capture_output=False, stdout=report, stderr=-1)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"a file of its own, but {place} is where stdout goes; rename one" in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["report.txt"]


def test_a_failed_write_keeps_what_was_there(tmp_path):
    (tmp_path / "plan.json").write_text("mine")
    done = pgplan(f"{PLAN} -o plan.json --svg nowhere/plan.svg", cwd=tmp_path)
    assert done.returncode == 2
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("plan.json", "mine")]


def test_writing_replaces_the_file_behind_a_link(tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    assert pgplan(f"{PLAN} -o link.json", cwd=tmp_path).returncode == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["fits"] is True


def test_a_worker_that_fails_is_told_with_its_traceback(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('no such\\nlibrary')\n")
    pgplan("plan qwen3-0.6b --gpu H200 --pp 2 --split 14,14 -o plan.json", cwd=tmp_path)
    done = pgplan("verify plan.json --backend gloo", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (3, "")
    told = done.stderr.partition("pgplan: ")[2].splitlines()
    assert "RuntimeError" in told[0]
    assert "Traceback (most recent call last):" in told
    assert "    raise RuntimeError('no such\\nlibrary')" in told


def test_help_tells_every_exit_code(tmp_path):
    done = pgplan("--help", cwd=tmp_path)
    told = " ".join(done.stdout.partition("Exit codes:")[2].split())
    assert re.findall(r"\b\d+\b", told) == ["0", "1", "2", "3", "130"]


def test_export_takes_the_engine_or_the_plans_own(tmp_path):
    pgplan(f"{PLAN} --split 20,21,20,19 -o plan.json", cwd=tmp_path)
    plan = pg.Plan.from_json((tmp_path / "plan.json").read_text())
    for words, engine in (("", None), ("--to vllm", "vllm"), ("--to sglang", "sglang")):
        done = pgplan(f"export plan.json {words}", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, plan.export(engine), "")
    done = pgplan("export plan.json --to vlm", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_export_takes_the_options_of_each_exporter(tmp_path):
    pgplan(f"{PLAN} --split 20,21,20,19 -o plan.json", cwd=tmp_path)
    plan = pg.Plan.from_json((tmp_path / "plan.json").read_text())
    for words, engine, options in (
        ("--nodes 2", None, {"nodes": 2}),
        ("--to vllm --nodes=2 --no-ray", "vllm", {"nodes": 2, "ray": False}),
        ("--to megatron --virtual-stages 2", "megatron", {"virtual_stages": 2}),
        ("--to torchtitan --form weights", "torchtitan", {"form": "weights"}),
        ("--override-tensor --to llama.cpp", "llama.cpp", {"override_tensor": True}),
        ("--to deepspeed --items-after 0", "deepspeed", {"items_after": 0}),
    ):
        # An option may stand before the plan as well.
        for line in (f"export plan.json {words}", f"export {words} plan.json"):
            done = pgplan(line, cwd=tmp_path)
            assert (done.returncode, done.stdout, done.stderr) == (0, plan.export(engine, **options), ""), (
                line
            )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            "--to megatron --chunks 2",
            "--chunks 2 is not understood; see 'pgplan export --to megatron --help'",
        ),
        ("--to megatron --nodes 2", "--nodes 2 is not understood"),
        ("--to sglang --no-ray", "--no-ray is not understood"),
        ("--virtual-stages 2", "--virtual-stages 2 is not understood; see 'pgplan export --help'"),
        ("--to megatron --form dsl", "argument --form: invalid choice: 'dsl' (choose from"),
        ("--nodes two", "must be a whole number such as 4, got 'two'"),
        ("--nodes -2", "nodes is at least 1, got -2"),
        ("--nodes 3", "4 stages of 1 GPU do not spread over 3 nodes; give nodes 1 or 2 or 4"),
        ("--nodes", "argument --nodes: expected one argument"),
        ("--to", "argument --to: expected one argument"),
        ("--to megatron --virtual-stages 20", "give virtual_stages 19 or less"),
        ("--to megatron --form counts", "use the layout (form 'layout'): Et*20|t*21|t*20|t*19,L"),
    ],
)
def test_wrong_exporter_options_are_one_line(words, complaint, tmp_path):
    pgplan(f"{PLAN} --split 20,21,20,19 -o plan.json", cwd=tmp_path)
    done = pgplan(f"export plan.json {words}", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert complaint in done.stderr


def test_export_warns_of_a_plan_that_does_not_fit(tmp_path):
    pgplan("plan llama-3.1-70b --gpu L4 --pp 4 -o plan.json", cwd=tmp_path)
    done = pgplan("export plan.json", cwd=tmp_path)
    assert done.returncode == 1
    assert "VLLM_PP_LAYER_PARTITION" in done.stdout
    assert done.stderr.startswith("pgplan: the plan does not fit: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "names"),
    [("models", pg.catalogue_names()), ("gpus", pg.gpu_names()), ("engines", exporter_names())],
)
def test_listings_name_everything(command, names, tmp_path):
    done = pgplan(f"{command} --json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["name"] for row in json.loads(done.stdout)] == list(names)
    done = pgplan(command, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = done.stdout.splitlines()[1 : len(names) + 1]
    assert [row.partition("  ")[0] for row in rows] == list(names)


def test_a_narrow_terminal_cuts_long_lines(tmp_path):
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "pgplan", "models"], stdout=theirs, env={**os.environ, "COLUMNS": "60"}
    )
    os.close(theirs)
    text = b""
    # Linux reports the end of a terminal as an input/output error.
    try:
        while chunk := os.read(ours, 65536):
            text += chunk
    except OSError:
        pass
    os.close(ours)
    assert child.wait(timeout=60) == 0
    lines = text.decode().splitlines()
    assert max(map(len, lines)) == 60
    assert any(line.endswith("…") for line in lines)


def test_a_closed_pipe_is_silent(tmp_path):
    ours, theirs = os.pipe()
    os.close(ours)
    done = pgplan("models", cwd=tmp_path, capture_output=False, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_or_full_output_is_no_traceback(tmp_path):
    words = [sys.executable, "-m", "pgplan", "models"]
    closed = subprocess.run(
        ["sh", "-c", shlex.join(words) + " >&-"], capture_output=True, text=True, check=False
    )
    assert (closed.returncode, closed.stderr) == (0, "")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No space left" in done.stderr


def test_a_terminal_without_unicode_is_no_error(tmp_path):
    done = pgplan(f"{PLAN} --compare-with default", cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()


def test_ctrl_c_ends_without_a_traceback(tmp_path):
    os.mkfifo(tmp_path / "plan.json")
    child = subprocess.Popen(
        [sys.executable, "-m", "pgplan", "export", "plan.json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    # Opening a pipe to write waits for its reader: from here on the program waits for us.
    with (tmp_path / "plan.json").open("w"):
        child.send_signal(signal.SIGINT)
        output = child.communicate(timeout=60)
    assert (child.returncode, output) == (130, (b"", b""))


def test_lab_opens_a_fresh_copy_of_the_notebooks(tmp_path):
    # JupyterLab's own --version goes through, and ends it before a server starts.
    done = pgplan("lab --version", cwd=tmp_path, env={"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    first, version = done.stdout.splitlines()[0], done.stdout.splitlines()[-1]
    copies = Path(first.removeprefix("notebooks: "))
    assert copies.parent == tmp_path
    assert sorted(path.name for path in copies.iterdir()) == sorted(p.name for p in NOTEBOOKS.glob("*.ipynb"))
    assert version[0].isdigit()


def test_lab_says_that_jupyterlab_is_missing(tmp_path):
    code = (
        "import sys; sys.modules['jupyterlab'] = None; from pgplan.cli import main; sys.exit(main(['lab']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "pip install 'pgplan[lab]'" in done.stderr


def test_help_and_version(tmp_path):
    for words in ("--help", "plan --help", "export --help", "export --to llama.cpp --help", "lab --help"):
        done = pgplan(words, cwd=tmp_path, env={"COLUMNS": "80"})
        assert (done.returncode, done.stderr) == (0, "")
        assert max(map(len, done.stdout.splitlines())) <= 80
    assert pgplan("--version", cwd=tmp_path).stdout == f"pgplan {pg.__version__}\n"
