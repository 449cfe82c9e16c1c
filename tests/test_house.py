"""The house rules that a machine can check: the tree, the direction of imports, no pickles, links and pins that hold."""

import ast
import fnmatch
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from para_video.rows import Rows
from para_video.sims.experts import recipe

ROOT = Path(__file__).parent.parent
FOLDERS = {".ci", "backbones", "benchmarks", "docs", "finetune", "notebooks", "para_video", "pretrain", "results", "tests"}
FILES = {
    ".gitignore",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "constraints.txt",
    "pyproject.toml",
    "setup.py",
}
HASHED = "backbones/efficientnet.py"
"""The one file that may read a pickle: weights that a Python package ships as one, if they are what they were, byte by byte."""
# What each folder may import of the others: scripts -> backbones -> para_video, and scripts know nothing of each other.
ALLOWED = {
    "para_video": {"para_video"},
    "backbones": {"para_video", "backbones"},
    "pretrain": {"para_video", "backbones", "pretrain"},
    "finetune": {"para_video", "backbones", "finetune"},
}


def project_files() -> list[str]:
    """Paths of the project's files: what git tracks, or, in a copy without git, what .gitignore does not name."""
    if (ROOT / ".git").exists():
        command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
        return sorted(name for name in listed if name and (ROOT / name).exists())
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()] + [".git"]
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return sorted(p.as_posix() for p in paths if not any(fnmatch.fnmatch(part, i) for part in p.parts for i in ignored))


def sources() -> dict[str, ast.Module]:
    """Every Python file and every notebook's code."""
    trees = {}
    for name in project_files():
        if name.endswith(".py"):
            trees[name] = ast.parse((ROOT / name).read_text(encoding="utf-8"), name)
        elif name.endswith(".ipynb"):
            cells = json.loads((ROOT / name).read_text(encoding="utf-8"))["cells"]
            lines = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code").splitlines()
            trees[name] = ast.parse("\n".join(line for line in lines if not line.lstrip().startswith(("%", "!"))), name)
    return trees


def imported(tree: ast.AST) -> set[str]:
    """Dotted names that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def wrong_way(folder: str, tree: ast.AST) -> set[str]:
    """Imports that flow against the direction."""
    return {name for name in imported(tree) if (top := name.split(".")[0]) in FOLDERS and top not in ALLOWED[folder]}


def dotted(node: ast.AST) -> str:
    """`torch.load` of the expression torch.load; of anything else what follows its last dot."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(tree: ast.AST) -> set[str]:
    """Ways to run code out of a data file."""
    modules = {"pickle", "cPickle", "_pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
    calls = {"torch.load", "torch.save", "torch.hub.load", "pandas.read_pickle", "pd.read_pickle", "load_state_dict_from_url"}
    calls |= {"torch.serialization.load", "torch.serialization.save"}
    switches = {"trust_remote_code": True, "allow_pickle": True, "weights_only": False}
    found = {name for name in imported(tree) if name.split(".")[0] in modules or name in calls}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found |= {dotted(node.func)} & calls
            found |= {
                k.arg
                for k in node.keywords
                if k.arg in switches and not (isinstance(k.value, ast.Constant) and k.value.value is not switches[k.arg])
            }
    return found


def hashed_load(tree: ast.AST) -> bool:
    """Whether a module's one `torch.load` takes tensors alone, and its function compares a SHA-256 with a constant."""
    loads = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and dotted(node.func) == "torch.load"]
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and any(load in ast.walk(node) for load in loads)
    ]
    if len(loads) != 1 or len(functions) != 1:
        return False
    tensors_alone = any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in loads[0].keywords)
    compared = [node for node in ast.walk(functions[0]) if isinstance(node, ast.Compare)]
    hashed = any("hashlib.sha256" in {dotted(part) for part in ast.walk(node)} for node in compared)
    constant = any(isinstance(part, ast.Name) and part.id == "SHA256" for node in compared for part in ast.walk(node))
    return tensors_alone and hashed and constant


def path_edits(tree: ast.AST) -> set[str]:
    """Uses of the module search path."""
    used = {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | imported(tree)
    return used & {"sys.path", "site.addsitedir"}


def prints(tree: ast.AST) -> list[int]:
    """Lines that print."""
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and dotted(node.func) in ("print", "pprint")]


# ---------------------------------------------------------------- the tree


def test_the_top_level_is_what_was_agreed() -> None:
    files = project_files()
    assert {name.split("/")[0] for name in files if "/" in name} <= FOLDERS
    assert {name for name in files if "/" not in name} == FILES
    for folder in ("para_video", "backbones", "pretrain", "finetune", "notebooks", "tests", ".ci"):
        assert any(name.startswith(f"{folder}/") for name in files), f"{folder}/ is empty"


def test_weights_in_the_tree_are_safetensors() -> None:
    wrong = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".joblib", ".h5", ".msgpack"}
    assert not [name for name in project_files() if Path(name).suffix.lower() in wrong]


def test_every_library_module_is_in_an_installed_package() -> None:
    packages = setup_arguments()["packages"]
    for name in project_files():
        if name.startswith(("para_video/", "backbones/")) and name.endswith(".py"):
            assert str(Path(name).parent).replace("/", ".") in packages, f"{name}: its folder wants an __init__.py"


# ---------------------------------------------------------------- the code


def test_imports_flow_one_way() -> None:
    wrong = {name: wrong_way(folder, tree) for name, tree in sources().items() if (folder := name.split("/")[0]) in ALLOWED}
    assert len(wrong) > 5
    assert not {name: names for name, names in wrong.items() if names}


def test_nothing_unpickles_and_nothing_edits_the_search_path() -> None:
    found = {name: unsafe(tree) | path_edits(tree) for name, tree in sources().items()}
    if hashed_load(sources()[HASHED]):
        found[HASHED] -= {"torch.load"}
    assert not {name: names for name, names in found.items() if names}


def test_the_library_is_silent() -> None:
    found = {name: prints(tree) for name, tree in sources().items() if name.startswith(("para_video/", "backbones/"))}
    assert not {name: lines for name, lines in found.items() if lines}


@pytest.mark.parametrize(
    ("check", "offence"),
    [
        (lambda tree: wrong_way("para_video", tree), "def f():\n    from backbones import catalogue"),
        (lambda tree: wrong_way("backbones", tree), "import finetune.robot"),
        (lambda tree: wrong_way("finetune", tree), "import pretrain.circles"),
        (unsafe, "import torch\nx = torch.load('w.pt')"),
        (unsafe, "import torch\nx = torch.load('w.pt', weights_only=True)"),
        (unsafe, "from torch import load"),
        (unsafe, "import pickle as p"),
        (unsafe, "np.load(path, allow_pickle=True)"),
        (unsafe, "AutoModel.from_pretrained(name, trust_remote_code=flag)"),
        (unsafe, "f(weights_only=False)"),
        (path_edits, "import sys\nsys.path.insert(0, '.')"),
        (path_edits, "from sys import path"),
        (prints, "def f():\n    print('hello')"),
    ],
)
def test_the_checks_see_an_offence_and_let_its_harmless_twin_pass(check, offence: str) -> None:
    assert check(ast.parse(offence))
    harmless = "import torch, sys, numpy as np\nfrom para_video import camera\nnp.load('x.npz', allow_pickle=False)\nsys.argv"
    assert not check(ast.parse(harmless))


LOAD = """
SHA256 = "5793"
def read(data):
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise ValueError
    return torch.load(io.BytesIO(data), weights_only=True)
"""


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ("weights_only=True", "weights_only=False"),
        (", weights_only=True", ""),
        ("hashlib.sha256(data).hexdigest() != SHA256", "not data"),
        ("!= SHA256", "!= given"),
        ("hashlib.sha256(data).hexdigest()", "data"),
        ("def read", "x = torch.load(y, weights_only=True)\ndef read"),
        ("    return torch", "def other(data):\n    return torch"),
    ],
)
def test_a_pickle_is_read_only_after_its_hash_and_without_code(part: str, instead: str) -> None:
    assert hashed_load(ast.parse(LOAD))
    wrong = LOAD.replace(part, instead)
    assert wrong != LOAD
    assert not hashed_load(ast.parse(wrong))


# ---------------------------------------------------------------- the papers


@pytest.mark.parametrize("page", [name for name in project_files() if name.endswith(".md")] or ["README.md"])
def test_local_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)
    links = re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    local = [link.split("#")[0] for link in links if not re.match(r"[a-z]+:", link) and not link.startswith("#")]
    assert not [link for link in local if not (ROOT / page).parent.joinpath(link).exists()]


def test_the_readme_shows_a_picture_and_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"!\[[^\]]*\]\([^)]+\)|<img ", text)
    assert "python pretrain/circles.py" in text and "python finetune/robot.py --demos 5" in text


def test_every_make_target_that_is_spoken_of_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for name in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        spoken = set(re.findall(r"(?:`|^|\$ )make ([a-z-]+)", (ROOT / name).read_text(encoding="utf-8"), flags=re.M))
        assert spoken <= targets, name


# ---------------------------------------------------------------- the pins


def setup_arguments() -> dict:
    """What setup.py says, without installing anything."""
    seen: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(setuptools, "setup", seen.update)
        runpy.run_path(str(ROOT / "setup.py"))
    return seen


def setup_requirements() -> list[Requirement]:
    arguments = setup_arguments()
    extras = arguments["extras_require"]
    return [Requirement(r) for r in [*arguments["install_requires"], *(r for extra in extras.values() for r in extra)]]


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(r.name): r for r in (Requirement(line) for line in lines if line and not line.startswith("#"))}


def test_every_requirement_is_pinned_within_its_range() -> None:
    for requirement in setup_requirements():
        pin = pins()[canonicalize_name(requirement.name)]
        (exact,) = pin.specifier
        assert requirement.specifier.contains(exact.version), f"{requirement} does not allow the pinned {exact.version}"


def test_pins_are_exact_versions_that_any_registry_has() -> None:
    for name, pin in pins().items():
        (exact,) = pin.specifier
        assert exact.operator == "==" and "*" not in exact.version, name
        assert "+" not in exact.version and pin.url is None, f"{name}: local builds cannot be installed elsewhere"


def test_what_the_code_imports_is_required() -> None:
    known = {"PIL": "pillow", "skimage": "scikit-image"}
    required = {canonicalize_name(requirement.name) for requirement in setup_requirements()} | {"setuptools"}
    third_party = set()
    for tree in sources().values():
        third_party |= {name.split(".")[0] for name in imported(tree)} - FOLDERS - sys.stdlib_module_names
    assert {canonicalize_name(known.get(name, name)) for name in third_party} <= required


def test_a_result_s_name_says_which_of_two_precisions_it_is_of():
    name_of = runpy.run_path(str(ROOT / "benchmarks" / "results_table.py"))["name_of"]
    summary = {"task": "push-v3", "demos": 20, "oracle": {}, "config": {"task": "push-v3", "steps": 10}}
    told = [
        name_of(summary | versions)
        for versions in ({}, {"versions": {"precision": "bf16"}}, {"versions": {"precision": "float32"}})
    ]
    assert told == ["robot-push-20-steps-10"] * 2 + ["robot-push-20-steps-10-float32"]


def test_what_bounds_policies_stands_under_the_view_that_it_was_measured_in():
    script = runpy.run_path(str(ROOT / "benchmarks" / "results_table.py"))
    summary = json.loads((ROOT / "results" / "robot-pick-place-5.json").read_text())
    for policy in summary["policies"].values():
        policy["cells"] = dict(reversed(policy["cells"].items()))
    line = next(line for line in script["robot_table"](summary).splitlines() if line.startswith("| expert"))
    assert [cell.strip() for cell in line.strip("|").split("|")][1:4] == ["", "50/50 (93%-100%)", ""]


def test_runs_that_learnt_from_an_earlier_expert_are_told_so():
    way = runpy.run_path(str(ROOT / "benchmarks" / "results_table.py"))["way"]
    summary = {"task": "push-v3", "schedule": {"executed": 2}, "config": {"state_noise": 1.0}}
    told = [way(summary | {"expert": each}) for each in (recipe("push-v3"), recipe("push-v3") - 1, None)]
    assert told == ["2; roughly", "2; roughly; an earlier expert", "2; roughly"]


def test_the_errors_of_circles_are_told_of_the_policy_that_made_them():
    script = runpy.run_path(str(ROOT / "benchmarks" / "results_table.py"))
    summary = json.loads((ROOT / "results" / "circles.json").read_text())
    assert "| PARA head |" in script["circles_table"](summary)
    summary["config"]["policy"] = "regression"
    assert "| PARA head |" not in script["circles_table"](summary)


def test_results_have_names_of_their_own_that_stay(tmp_path):
    script = runpy.run_path(str(ROOT / "benchmarks" / "results_table.py"))
    published = [path for kind in ("robot-", "video", "circles") for path in (ROOT / "results").glob(f"{kind}*.json")]
    assert published and all(script["name_of"](json.loads(path.read_text())) == path.stem for path in published)
    options = [{"azimuths": "0,6"}, {"azimuths": "0,-6"}, {"shifts": "roll=12"}, {"shifts": "roll=-12"}]
    assert len({script["name_of"]({"task": "push-v3", "demos": 20, "oracle": {}, "config": each}) for each in options}) == 4
    starts = {start: script["told_init"](start) for start in ("none", "runs/video", "backbones/weights/mini-procedural")}
    assert list(starts.values()) == ["init-none", "init", "init-mini-procedural"]
    kept = tmp_path / "robot.json"
    kept.write_text(json.dumps({"config": {"init": "runs/a", "out": None}}))
    script["refuse_another"](kept, {"config": {"init": "runs/a", "out": "runs/robot"}})
    with pytest.raises(ValueError, match="init runs/a and runs/b.*move it away"):
        script["refuse_another"](kept, {"config": {"init": "runs/b"}})


def test_a_run_that_cannot_be_told_is_not_taken_in(tmp_path):
    script, run = runpy.run_path(str(ROOT / "benchmarks" / "results_table.py")), tmp_path / "run"
    results = tmp_path / "results"
    for folder in (run, results):
        folder.mkdir()
    summary = json.loads((ROOT / "results" / "robot-pick-place-5-policies-para-train-heads.json").read_text())
    config = script["Config"](collect=(run,), results=results, front=tmp_path / "front.md", page=tmp_path / "page.md")
    (run / "summary.json").write_text(json.dumps({name: part for name, part in summary.items() if name != "command"}))
    with pytest.raises(KeyError):
        script["main"](config)
    assert not [*results.iterdir()]
    for page in (config.front, config.page):
        page.write_text("<!-- table: benchmarks/results_table.py -->\n\n<!-- end of table -->\n")
    (run / "summary.json").write_text(json.dumps(summary | {"command": "python finetune/robot.py"}))
    script["main"](config)
    assert "| ``, bf16 | 2; roughly |" in config.page.read_text() and len([*results.iterdir()]) == 1


def test_the_tables_of_runs_are_those_of_the_results(tmp_path):
    """No figure is typed: what the script writes from results/ is what the pages say."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "results_table.py"))
    kept = {"front": ROOT / "README.md", "page": ROOT / "docs" / "results.md"}
    pages = {name: tmp_path / path.name for name, path in kept.items()}
    for name, path in kept.items():
        pages[name].write_text(path.read_text())
    script["main"](script["Config"](**pages))
    assert {name: path.read_text() for name, path in pages.items()} == {name: path.read_text() for name, path in kept.items()}


@pytest.mark.parametrize("name", ["beyond", "circle_arms", "equivariance", "freeze_ablation", "ladder", "taps", "tuning_table"])
def test_pages_are_what_their_scripts_write_of_the_rows(name: str, tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"))
    kept = script["Config"]().page
    page, results = tmp_path / kept.name, tmp_path / "rows.json"
    shutil.copy(script["Config"]().results, results)
    shutil.copy(kept, page)
    rows = Rows(results, json.loads(results.read_text())["settings"], script["KEY"])
    script["write"](script["Config"](page=page, results=results), rows.find() if name == "taps" else rows)
    assert page.read_text() == kept.read_text()
