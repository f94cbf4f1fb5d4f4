"""The common test suites that transformers runs on its own models, imported from its source distribution.

`make` unpacks the distribution beside the installed packages. It holds the suites themselves; the few modules that they
import and that it lacks are stood in for here. Importing this module skips the importing test file where the suites are absent.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import transformers

FOLDER = Path(sys.prefix) / "src" / f"transformers-{transformers.__version__}" / "tests"
if not FOLDER.is_dir():
    pytest.skip(
        f"transformers' own test suites are not at {FOLDER}: `make suites` downloads them", allow_module_level=True
    )


def _module(name: str, **contents) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(contents)
    sys.modules[name] = module
    return module


# Their package is called `tests`, as this folder is.
_module("transformers_tests").__path__ = [str(FOLDER)]
for _package in ("exporters", "generation", "utils"):
    _module(f"transformers_tests.{_package}").__path__ = []
# ONNX and ExecuTorch exporters, and text generation: mixins for models that have either.
_module("transformers_tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
_module("transformers_tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
# One value other than the default for each setting that all configurations share.
_module(
    "transformers_tests.utils.test_configuration_utils",
    config_common_kwargs={
        "return_dict": False,
        "output_hidden_states": True,
        "output_attentions": True,
        "dtype": "float16",
        "chunk_size_feed_forward": 3,
        "architectures": ["DelstModel"],
        "id2label": {0: "tumour"},
        "label2id": {"tumour": 0},
        "problem_type": "regression",
    },
)
_module("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)

# Without this, each suite would look for a copy of transformers among its own files.
with mock.patch("transformers.utils.direct_transformers_import", return_value=transformers):
    _modeling = importlib.import_module("transformers_tests.test_modeling_common")
    _configuration = importlib.import_module("transformers_tests.test_configuration_common")
    _processing = importlib.import_module("transformers_tests.test_processing_common")
    _feature_extraction = importlib.import_module("transformers_tests.test_feature_extraction_common")

ModelTesterMixin = _modeling.ModelTesterMixin
ConfigTester = _configuration.ConfigTester
ProcessorTesterMixin = _processing.ProcessorTesterMixin
FeatureExtractionSavingTestMixin = _feature_extraction.FeatureExtractionSavingTestMixin
