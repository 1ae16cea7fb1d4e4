"""What a registered model needs to be served, and which of its versions is which."""

from importlib.metadata import version

from mlflow import MlflowClient

from pipeline.tracking.models import point, requirements


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


def test_aliases_name_the_newest_version_and_the_best_one(tracking):
    client = MlflowClient()

    def aliases():
        return {alias: str(one) for alias, one in client.get_registered_model("mine").aliases.items()}

    client.create_registered_model("mine")
    for number in ("1", "2"):
        client.create_model_version("mine", str(tracking))
        point("mine", best=number if number == "1" else None)
    assert aliases() == {"champion": "1", "challenger": "2"}
    point("mine", best="2")
    assert aliases() == {"champion": "2", "challenger": "2"}
