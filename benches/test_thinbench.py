"""What the harness computes, without root, servers or fio."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from thinbench import jobs, report  # noqa: E402
from thinbench.measure import Effort, Figures  # noqa: E402
from thinbench.peers import SIDES  # noqa: E402
from thinbench.rows import IOPS, LATENCY, ROWS, TUNING, CaseRow, Must, Row  # noqa: E402
from thinbench.world import Failure  # noqa: E402


def result(unit, ours, theirs, must=2.0):
    row = Row("row", jobs.Job("randread"), ("a", "b"), unit=unit, must=(Must("b", must),))
    return report.Result(row, [Figures("a", "", ours), Figures("b", "", theirs)])


def fio(requests, done, error=0):
    nothing = {"total_ios": 0, "io_bytes": 0, "iops": 0, "lat_ns": {"mean": 0}}
    write = {"total_ios": requests, "io_bytes": done * 4096, "iops": 0, "lat_ns": {"mean": 5000}}
    client = {"error": error, "job_runtime": 500, "usr_cpu": 10, "sys_cpu": 20}
    return {"jobs": [{**client, "read": nothing, "trim": nothing, "write": write}]}


class Ratios(unittest.TestCase):
    def test_above_one_is_better_in_every_unit(self):
        self.assertEqual(result(IOPS, [300], [100]).ratio(Figures("b", "", [100])), 3)
        self.assertEqual(result(LATENCY, [10], [30]).ratio(Figures("b", "", [30])), 3)

    def test_a_demand_is_met_by_medians(self):
        self.assertTrue(result(IOPS, [1, 200, 900], [90, 100, 110]).verdicts()[0].met)
        self.assertFalse(result(IOPS, [199, 199, 199], [100, 100, 100]).verdicts()[0].met)

    def test_a_failed_side_is_no_verdict(self):
        found = result(IOPS, [200], [])
        self.assertIsNone(found.verdicts()[0].met)
        self.assertIn("not measured", report.markdown({}, Effort(), [found], []))

    def test_a_time_limit_is_a_demand(self):
        row = CaseRow("case", "words", "forks", ("a",), under_ms=2)
        self.assertTrue(report.Result(row, [Figures("a", "", [1.9])]).verdicts()[0].met)
        self.assertFalse(report.Result(row, [Figures("a", "", [2.1])]).verdicts()[0].met)


class Work(unittest.TestCase):
    job = jobs.Job("randwrite", listed="first")

    def test_first_writes_each_have_a_block_of_their_own(self):
        size = 128 * jobs.MIB
        lists = jobs._lists(jobs.Job("randwrite", listed="first", jobs=2, flush_every=32), size, 1024)
        offsets = [offset for one in lists for what, offset, _ in one if what == "write"]
        self.assertEqual(len({offset // jobs.BLOCK for offset in offsets}), 1024)
        self.assertNotEqual(offsets, sorted(offsets))
        self.assertLess(max(offsets), size)

    def test_every_thirty_two_writes_are_followed_by_a_flush(self):
        requests = jobs._with_flushes([("write", at * 4096) for at in range(64)], jobs.Job("randwrite", flush_every=32))
        self.assertEqual([n for n, request in enumerate(requests) if request == jobs.FLUSH], [32, 65, 66])

    def test_figures_come_from_what_is_done(self):
        self.assertEqual(jobs._outcome(fio(1000, 990), self.job, 1000).iops, 1980)

    def test_too_little_work_is_a_failure(self):
        with self.assertRaises(Failure):
            jobs._outcome(fio(1000, 900), self.job, 1000)
        with self.assertRaises(Failure):
            jobs._outcome(fio(0, 0), jobs.Job("randwrite"), 0)

    def test_an_error_of_a_client_is_a_failure(self):
        with self.assertRaises(Failure):
            jobs._outcome(fio(1000, 1000, error=5), self.job, 1000)


class Rows(unittest.TestCase):
    def test_names_are_unique_and_sides_exist(self):
        rows = [*ROWS, *TUNING]
        self.assertEqual(len({row.name for row in rows}), len(rows))
        for row in rows:
            for must in row.must:
                self.assertIn(must.peer, row.sides, row.name)
            if isinstance(row, Row):
                for side in row.sides:
                    self.assertIn(row.state, SIDES[side].states, (row.name, side))


if __name__ == "__main__":
    unittest.main()
