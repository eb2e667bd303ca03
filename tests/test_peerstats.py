"""The figures of appends: rates, counts and latencies."""

from __future__ import annotations

from statistics import fmean, pstdev

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedkv.peerstats import CAPACITY, NO_MINIMUM_MS, Appends, FollowerStats, Latency, PeerStats, Rates


class AppendsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.appends = Appends(self.clock.seconds)

    def note(self, writes: int, count: int = 1, size: int = 100) -> None:
        """So many writes, a tenth of a second apart."""
        for _ in range(writes):
            self.clock.advance(0.1)
            self.appends.note(count, size)

    def test_rates_are_over_the_time_between_first_and_last(self) -> None:
        """Eleven appends of 100 bytes within a second are 11 and 1100 a second, as etcd counts."""
        self.note(11)
        rates = self.appends.rates()
        self.assertAlmostEqual(rates.appends_per_s, 11)
        self.assertAlmostEqual(rates.bytes_per_s, 1100)

    def test_a_lone_append_has_no_rate(self) -> None:
        """There is no time to measure over."""
        self.assertEqual(self.appends.rates(), Rates(0, 0))
        self.note(1)
        self.assertEqual(self.appends.rates(), Rates(0, 0))
        self.assertEqual(self.appends.count, 1)

    def test_rates_end_a_second_after_the_last_append(self) -> None:
        """And what was before the pause does not slow the rate after it."""
        self.note(11)
        self.clock.advance(1.0)
        self.assertGreater(self.appends.rates().appends_per_s, 0)
        self.clock.advance(0.01)
        self.assertEqual(self.appends.rates(), Rates(0, 0))
        self.note(2)
        self.assertAlmostEqual(self.appends.rates().appends_per_s, 20)
        self.assertEqual(self.appends.count, 13)

    def test_only_the_last_appends_count(self) -> None:
        """Two hundred, in as few writes as they were."""
        self.note(50, size=1_000_000)
        self.note(CAPACITY)
        rates = self.appends.rates()
        self.assertAlmostEqual(rates.appends_per_s, CAPACITY / 19.9)
        self.assertAlmostEqual(rates.bytes_per_s, CAPACITY * 100 / 19.9)
        self.note(4, count=50, size=5000)
        self.assertAlmostEqual(self.appends.rates().appends_per_s, 200 / 0.3)
        self.assertAlmostEqual(self.appends.rates().bytes_per_s, 20_000 / 0.3)
        self.assertEqual(self.appends.count, 450)


class FollowerStatsTests(SynchronousTestCase):
    def test_a_follower_that_got_nothing(self) -> None:
        """Its least latency is etcd's 2^63."""
        self.assertEqual(FollowerStats().latency(), Latency(0, 0, 0, NO_MINIMUM_MS, 0))

    def test_times_are_in_milliseconds(self) -> None:
        """To the nanosecond, without the noise of binary fractions."""
        stats = FollowerStats()
        for seconds in (0.000821, 0.0005110000001, 0.008206):
            stats.success(1, seconds)
        latency = stats.latency()
        self.assertEqual((latency.current, latency.minimum, latency.maximum), (8.206, 0.511, 8.206))
        self.assertEqual((stats.succeeded, stats.failed), (3, 0))

    def test_appends_of_one_write_share_its_time(self) -> None:
        """Ten in 2 ms took 0.2 ms each."""
        stats = FollowerStats()
        stats.success(10, 0.002)
        self.assertEqual(stats.succeeded, 10)
        latency = stats.latency()
        for value in (latency.current, latency.average, latency.minimum, latency.maximum):
            self.assertAlmostEqual(value, 0.2)
        self.assertAlmostEqual(latency.standard_deviation, 0, places=6)

    @given(st.lists(st.tuples(st.integers(1, 5), st.floats(1e-6, 1.0)), min_size=1, max_size=30))
    def test_figures_are_those_of_all_appends(self, writes: list[tuple[int, float]]) -> None:
        """Average and deviation come out as if every single time had been kept."""
        stats = FollowerStats()
        each_ms = []
        for count, seconds in writes:
            stats.success(count, seconds)
            each_ms += [seconds / count * 1000] * count
        latency = stats.latency()
        self.assertAlmostEqual(latency.average, fmean(each_ms), places=9)
        rounding_ms = 1e-6 * max(each_ms)  # of the root of a difference
        self.assertLessEqual(abs(latency.standard_deviation - pstdev(each_ms)), rounding_ms)
        self.assertAlmostEqual(latency.minimum, min(each_ms), places=6)
        self.assertAlmostEqual(latency.maximum, max(each_ms), places=6)


class PeerStatsTests(SynchronousTestCase):
    def test_followers_are_told_apart(self) -> None:
        """Each has its own figures, which stay."""
        stats = PeerStats(Clock().seconds)
        stats.followers[2].failed += 1
        stats.followers[3].success(1, 0.1)
        self.assertEqual([stats.followers[each].failed for each in (2, 3)], [1, 0])
        self.assertEqual([stats.followers[each].succeeded for each in (2, 3)], [0, 1])
