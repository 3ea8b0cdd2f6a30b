from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.errors import UsageError
from conformance.shard import Shard, parse_shard


@given(st.text(max_size=60), st.integers(1, 40))
def test_every_case_is_in_one_share(case: str, count: int) -> None:
    assert sum(Shard(index, count).holds(case) for index in range(1, count + 1)) == 1


def test_the_share_of_a_case_never_changes() -> None:
    cases = ["linear::linear_relu[static-export]", "add::add[static-trace]", "conv::conv[qat-export-n=1]"]
    assert [next(i for i in range(1, 8) if Shard(i, 7).holds(case)) for case in cases] == [7, 2, 5]


def test_shares_are_about_equal() -> None:
    cases = [f"suite::spec[static-export-n={n}]" for n in range(3000)]
    sizes = [sum(Shard(index, 5).holds(case) for case in cases) for index in range(1, 6)]
    assert min(sizes) > 500


def test_a_share_is_read_as_it_is_written() -> None:
    assert parse_shard("2/3") == Shard(2, 3) and str(Shard(2, 3)) == "2/3"


@pytest.mark.parametrize("text", ["", "2", "0/3", "4/3", "1/0", "-1/3", "a/b", "1/2/3", "1 / 2", "１/2"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="such as 2/3"):
        parse_shard(text)
