"""What a registered model needs to be served."""

from importlib.metadata import version

from pipeline.tracking.models import requirements


def test_requirements_are_the_installed_versions_of_what_is_imported(tmp_path):
    source = tmp_path / "mine.py"
    source.write_text("import math\nimport sklearn.datasets as d\nfrom optuna import Trial\nimport pipeline\n")
    neighbour = tmp_path / "neighbour.py"
    neighbour.write_text("def f():\n    import psutil\nfrom . import mine\n")
    found = requirements([source, neighbour])
    for name in ("scikit-learn", "optuna", "psutil", "torch", "mlflow"):
        assert f"{name}=={version(name)}" in found
    assert found == sorted(set(found))
    assert not [line for line in found if line.startswith(("math", "thaw", "pipeline", "mine"))]
