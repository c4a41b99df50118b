"""The rules of the house: directions of imports, style, docstrings, and a package that is quick to import."""

import ast
import importlib
import inspect
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import baton_diffusers


ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def run(*command):
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_imports_run_one_way():
    run(BIN / "lint-imports", "--no-cache")


@pytest.mark.parametrize("arguments", [("check",), ("format", "--check")])
def test_ruff_is_content(arguments):
    run(BIN / "ruff", *arguments, ".")


@pytest.mark.parametrize("module", ["baton_diffusers", "baton_diffusers.cli", "baton_diffusers.stage"])
def test_torch_is_imported_only_when_needed(module):
    run(sys.executable, "-c", f"import sys, {module}; sys.exit('torch' in sys.modules)")


def test_importing_the_package_takes_a_tenth_of_a_second():
    code = "import time; start = time.perf_counter(); import baton_diffusers; print(time.perf_counter() - start)"
    assert min(float(run(sys.executable, "-c", code)) for _ in range(3)) < 0.1


def public_objects():
    """Everything public that is defined in the package: modules, their classes and functions, and methods."""
    for info in pkgutil.walk_packages(baton_diffusers.__path__, "baton_diffusers."):
        module = importlib.import_module(info.name)
        yield info.name, module
        for name, value in vars(module).items():
            ours = getattr(value, "__module__", None) == info.name and not name.startswith("_")
            if not ours or not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            yield f"{info.name}.{name}", value
            if inspect.isclass(value):
                for method_name, method in vars(value).items():
                    method = getattr(method, "__func__", getattr(method, "fget", method))
                    if inspect.isfunction(method) and not method_name.startswith("_"):
                        yield f"{info.name}.{name}.{method_name}", getattr(value, method_name)


def test_every_public_name_has_a_docstring():
    # `inspect.getdoc` lets an overridden method keep the docstring of its base.
    missing = [name for name, value in public_objects() if not inspect.getdoc(value)]
    assert not missing, f"without a docstring: {missing}"


def test_the_public_names_are_there():
    for name in baton_diffusers.__all__:
        assert inspect.getdoc(getattr(baton_diffusers, name)), name
    assert set(baton_diffusers.__all__) <= set(dir(baton_diffusers))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = baton_diffusers.nonsense


def test_functions_stay_short():
    """A function has at most 150 lines without its docstring, and a call of the pipeline at most 32 arguments."""
    for path in (ROOT / "baton_diffusers").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                docstring = first.end_lineno - first.lineno + 1 if is_docstring else 0
                assert node.end_lineno - node.lineno + 1 - docstring <= 150, f"{node.name} in {path}"
    assert len(inspect.signature(baton_diffusers.BatonPipeline.__call__).parameters) - 1 <= 32


# Modules without a test file of their name, and the file that tests them.
TESTED_IN = {
    "shipped": "cli/test_loading",
    "evaluation/kept": "evaluation/test_arms",
    "cli/measured": "cli/test_generate",
    "cli/memory": "test_memory",
    "cli/workers": "cli/test_batch",
    "guiders/anchor_guidance": "guiders/test_passes",
    "models/attention_dual_branch": "models/test_cross_modal_attention",
    "models/conversion": "models/test_ovi_fixtures",
    "models/latents": "pipelines/test_conditions",
    "pipelines/checks": "pipelines/test_pipeline_baton",
    "pipelines/components": "pipelines/test_pipeline_baton",
    "pipelines/denoise": "pipelines/test_directions",
    "pipelines/film_plan": "pipelines/test_film",
    "pipelines/film_work": "pipelines/test_film_survives",
    "pipelines/modular_files": "pipelines/test_modular_pipeline",
    "pipelines/modular_parameters": "pipelines/test_modular_blocks",
    "pipelines/plan_methods": "pipelines/test_cues",
    "pipelines/planning": "pipelines/test_cues",
    "stage/hearing": "stage/test_scoring",
    "stage/language": "test_prompt_language",
    "stage/sight": "stage/test_scoring",
    "stage/sound": "stage/test_render",
    "stage/strange_words": "stage/test_prompts",
    "stage/wordings": "stage/test_prompts",
    "stage/words": "stage/test_render",
    "studio/glimpse": "studio/test_session",
    "studio/recipe": "studio/test_session",
    "studio/shown": "studio/test_session",
    "training/average": "training/test_processes",
    "training/seeds": "training/test_trainer",
    "training/tasks": "training/test_flow_matching",
}


def test_the_tests_mirror_the_package():
    package, tests = ROOT / "baton_diffusers", ROOT / "tests"
    for path in package.rglob("*.py"):
        module = path.relative_to(package).with_suffix("")
        if path.name.startswith("__"):
            continue
        own = (tests / module).with_name(f"test_{module.name}.py")
        if str(module) in TESTED_IN:
            assert not own.is_file(), f"{own.name} is there: take {module} out of TESTED_IN"
            own = tests / f"{TESTED_IN[str(module)]}.py"
        assert own.is_file(), (
            f"no tests for {module}: write {own.relative_to(tests)}, or say in TESTED_IN where they are"
        )


def test_make_knows_its_targets():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for target in ("demo", "test"):
        assert f"{'baton generate' if target == 'demo' else 'pytest'}" in run(
            "make", "--dry-run", "--always-make", target
        )
