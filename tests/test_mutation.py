"""The list of faults for tests/mutation.py does not rot: each is still a change of the code as it is."""

from __future__ import annotations

import ast

from tests.faults import FAULTS
from tests.mutation import ROOT


def test_every_fault_changes_one_place_of_the_code():
    texts = {fault.path: (ROOT / fault.path).read_text() for fault in FAULTS}
    assert [fault for fault in FAULTS if texts[fault.path].count(fault.old) != 1] == []
    for fault in FAULTS:
        before = texts[fault.path]
        after = fault.applied(texts[fault.path])
        assert ast.dump(ast.parse(after)) != ast.dump(ast.parse(before)), fault.why


def test_every_fault_names_tests_that_are_there():
    for fault in FAULTS:
        for name in fault.tests.split():
            path, _, test = name.partition("::")
            assert (ROOT / path).is_file(), name
            assert f"def {test}(" in (ROOT / path).read_text() or not test, name


def test_there_are_enough_of_them_in_every_part():
    assert len(FAULTS) >= 60 and len({(fault.file, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS)
    rooms = {fault.file.partition("/")[0] for fault in FAULTS}
    assert rooms >= {"rl", "models", "sampling", "data", "rewards", "runs", "formats", "training"}
