"""`make test-cpus` runs every test with a numerical claim, as another CPU computes, and sees what fails there."""

import pytest

from tests import cpu_variants


@pytest.mark.slow
def test_tests_are_found_by_what_they_claim():
    names = {name.partition("::")[0].rpartition("/")[2] for name in cpu_variants.numerical_tests()}
    assert {"test_losses.py", "test_kernels.py", "test_models.py", "test_video.py"} <= names
    assert not {"test_layers.py", "test_cpu_variants.py"} & names


@pytest.mark.slow
def test_a_variant_reaches_the_tests_and_one_that_fails_shows_what_pytest_said(tmp_path, capfd):
    claim = tmp_path / "test_claim.py"
    claim.write_text(
        "import os, torch\n\ndef test_claim():\n    assert (torch.backends.cpu.get_cpu_capability(), "
        "os.environ.get('AVSSL_TEST_THREADS')) == ('DEFAULT', '2')\n"
    )
    plain = {"ATEN_CPU_CAPABILITY": "default", "AVSSL_TEST_THREADS": "2"}
    assert cpu_variants.run(plain, [str(claim)], ["-p", "no:cacheprovider"])
    assert capfd.readouterr().out.startswith("ATEN_CPU_CAPABILITY=default AVSSL_TEST_THREADS=2: 1 passed")
    assert not cpu_variants.run(plain | {"AVSSL_TEST_THREADS": "1"}, [str(claim)], ["-p", "no:cacheprovider"])
    assert "test_claim.py::test_claim" in capfd.readouterr().out
