"""Communication between processes."""

from torch import distributed

from perceiver.processes import all_gather, all_reduce_max
from tests.processes import together
from tests.runs import Ended


def test_one_process_gets_its_own_values():
    assert all_gather("alone") == ["alone"]
    assert all_reduce_max(3, 0) == [3, 0]


def test_all_processes_get_all_values():
    def work(rank):
        distributed.init_process_group("gloo")
        assert all_gather({"own": rank}) == [{"own": 0}, {"own": 1}, {"own": 2}]
        assert all_reduce_max(rank, 7 - rank, 5 * (rank == 1)) == [2, 7, 5]
        return Ended(0, "", "")

    assert [ended.code for ended in together(3, work)] == [0, 0, 0]
