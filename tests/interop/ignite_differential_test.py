#!/usr/bin/env python3
"""best_k beside Ignite's own Checkpoint: the same events for both, and after each the same name, evictions, list and folder.

usage: ignite_differential_test.py BEST_K_TOOL       (tests/interop/best_k_tool.cpp; it explains the script)

Where the two differ by intent stands in DIFFERENCES, a predicate each. It looks at the list before an event and at the event, and is
true exactly if Ignite, with that list, does something else there. So at each event one of these holds:
 - no predicate is true, and Ignite and libmarlin did the same;
 - one is, they did not, and libmarlin did what Kept, a model of its rules, says. Ignite then takes over libmarlin's list and files, so
   that what comes next is compared again.
The random sequences come from a seed that is printed; MARLIN_TEST_SEED sets it.
"""

import bisect
import collections
import dataclasses
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[2] / ".deps" / "peers"))
import ignite  # noqa: E402
import torch  # noqa: E402
from ignite.engine import Engine  # noqa: E402
from ignite.handlers.checkpoint import Checkpoint, DiskSaver  # noqa: E402

TOOL = sys.argv.pop()
SEQUENCES = 500
MAX_REPORTED = 3  # sequences with a failure; the others are counted
SCORE_NAME = "acc"  # as in best_k_tool.cpp


@dataclasses.dataclass(frozen=True)
class Config:
    n_saved: int | None = 1
    score: str = "none"  # or function (Ignite prints its integers plain) or named (a metric, which Ignite makes a float)
    greater_or_equal: bool = False
    global_step: str = "none"  # in names: or step or epoch
    prefix: str = ""
    include_self: bool = False

    @property
    def scored(self):
        return self.score != "none"

    def line(self, folder):
        n_saved = "all" if self.n_saved is None else self.n_saved
        return f"config {n_saved} {self.score} {self.greater_or_equal:d} {self.global_step} {self.include_self:d} {self.prefix or '-'} {folder}"


@dataclasses.dataclass(frozen=True)
class Save:
    epoch: int  # from 1
    step: int
    score: int | float | None = None

    def line(self):
        return f"save {self.epoch} {self.step}" + ("" if self.score is None else f" {self.score!r}")


@dataclasses.dataclass(frozen=True)
class Restart:
    """In libmarlin a list is found again in the folder (`name`: the file that the run resumes from; None: nothing is there) or loaded."""

    by: str  # open or load
    name: str | None = None

    def line(self):
        return f"open {self.name or '-'}" if self.by == "open" else "load"


@dataclasses.dataclass
class Outcome:
    saved: str | None = None
    evicted: list = dataclasses.field(default_factory=list)


Entry = collections.namedtuple("Entry", "priority name step")


class Kept:
    """libmarlin's list: the next to leave comes first. Without a score that is the oldest, whatever its step."""

    def __init__(self, config):
        self.config = config
        self.entries = []

    def full(self):
        return self.config.n_saved is not None and len(self.entries) >= self.config.n_saved

    def lists(self, name):
        return any(entry.name == name for entry in self.entries)

    def number(self, save):
        """{global_step} of names; None: it is not in them."""
        if self.config.global_step == "none":
            return None if self.config.scored else save.step
        return save.epoch if self.config.global_step == "epoch" else save.step

    def priority(self, save):
        return save.score if self.config.scored else self.number(save)

    def wants(self, save):
        if not self.config.scored:
            return True
        if math.isnan(save.score):
            return False
        worst = self.entries[0].priority if self.full() else -math.inf
        return not self.full() or save.score > worst or (self.config.greater_or_equal and save.score == worst)

    def name(self, save):
        """Of the pattern, without regard to who has it."""
        parts = [self.config.prefix] if self.config.prefix else []
        parts.append("m")
        if self.number(save) is not None:
            parts.append(str(self.number(save)))
        if self.config.scored:
            text = str(int(save.score)) if is_whole(save.score) else f"{save.score:.4f}"
            text = "0.0000" if text == "-0.0000" else text
            parts.append(f"{SCORE_NAME}={text}" if self.config.score == "named" else text)
        return "_".join(parts) + ".pt"

    def save(self, save):
        if not self.wants(save):
            return Outcome()
        name = self.name(save)
        if self.lists(name) and self.number(save) is None:
            stem = f"{name.removesuffix('.pt')}_{save.step}"
            candidates = [f"{stem}.pt"] + [f"{stem}_{i}.pt" for i in range(2, len(self.entries) + 3)]
            name = next(candidate for candidate in candidates if not self.lists(candidate))
        self.entries = [entry for entry in self.entries if entry.name != name]
        evicted = [self.entries.pop(0).name] if self.full() else []
        entry = Entry(self.priority(save), name, save.step)
        if self.config.scored:
            bisect.insort_right(self.entries, entry, key=lambda entry: entry.priority)
        else:
            self.entries.append(entry)
        return Outcome(name, evicted)

    def listing(self):
        """As Ignite has it: ascending by priority, of equal ones the older first."""
        return [(entry.priority, entry.name) for entry in sorted(self.entries, key=lambda entry: entry.priority)]

    def names(self):
        return sorted(entry.name for entry in self.entries)

    def is_found_again_in_this_order(self):
        """Files know of their age only the step."""
        keys = [(entry.priority, entry.step) for entry in self.entries]
        return all(a < b for a, b in zip(keys, keys[1:]))


def is_whole(score):
    return math.isfinite(score) and score == int(score)


# What differs by intent, with the rows of the table of Ignite's behaviour that best_k's tests follow.


def nan_never_enters(kept, save):
    """133, 134: Ignite takes a NaN into a list that is not full, where it then blocks others. Into a full one it never comes."""
    return kept.config.scored and math.isnan(save.score) and not kept.full()


def whole_numbers_print_plain(kept, save):
    """171: 1.0 is 1.0000 in Ignite's names and 1 in ours, as the integer 1 is in both if a function gives it."""
    is_integer = isinstance(save.score, int) and kept.config.score == "function"
    return kept.config.scored and kept.wants(save) and is_whole(save.score) and not is_integer


def nothing_prints_as_minus_zero(kept, save):
    """172: what rounds to zero from below is -0.0000 in Ignite's names and 0.0000 in ours."""
    return kept.config.scored and kept.wants(save) and not is_whole(save.score) and f"{save.score:.4f}" == "-0.0000"


def names_are_unique(kept, save):
    """53, 144, 146, 172: where a score's text is in the list already, Ignite gives up that one for the new; our name gets the step."""
    return kept.config.scored and kept.wants(save) and kept.number(save) is None and kept.lists(kept.name(save))


def the_oldest_leaves(kept, save):
    """Without a score Ignite keeps the highest step numbers, so that a run that goes on from an earlier step is not saved until it has
    caught up. We save it, and the oldest leaves. (The table has only rising steps.)"""
    if kept.config.scored or not kept.full() or kept.lists(kept.name(save)):
        return False
    lowest = min(entry.priority for entry in kept.entries)
    return kept.number(save) < lowest or kept.entries[0].priority != lowest


def the_same_step_is_overwritten_in_place(kept, save):
    """176, 177: Ignite removes the file first or, if it is the lowest of a full list, leaves the older state."""
    return kept.wants(save) and kept.number(save) is not None and kept.lists(kept.name(save))


DIFFERENCES = [
    nan_never_enters,
    whole_numbers_print_plain,
    nothing_prints_as_minus_zero,
    names_are_unique,
    the_oldest_leaves,
    the_same_step_is_overwritten_in_place,
]


class RecordingSaver(DiskSaver):
    def __init__(self, folder):
        super().__init__(folder, create_dir=True, require_empty=False)
        self.saved, self.removed = [], []

    def __call__(self, checkpoint, filename, metadata=None):
        self.saved.append(filename)
        super().__call__(checkpoint, filename, metadata)

    def remove(self, filename):
        self.removed.append(filename)
        super().remove(filename)


class Ignite:
    def __init__(self, config, folder):
        self.config, self.folder = config, Path(folder)
        self.engine = Engine(lambda engine, batch: None)
        self.start()

    def start(self):
        config = self.config
        self.saver = RecordingSaver(self.folder)
        transforms = {"none": None, "step": lambda engine, event: engine.state.iteration, "epoch": lambda engine, event: engine.state.epoch}
        self.checkpoint = Checkpoint(
            {"m": torch.nn.Linear(1, 1)},
            self.saver,
            filename_prefix=config.prefix,
            score_function=(lambda engine: engine.state.score) if config.score == "function" else None,
            score_name=SCORE_NAME if config.score == "named" else None,
            n_saved=config.n_saved,
            global_step_transform=transforms[config.global_step],
            include_self=config.include_self,
            greater_or_equal=config.greater_or_equal,
        )

    def save(self, save):
        state = self.engine.state
        state.epoch, state.iteration, state.score, state.metrics = save.epoch, save.step, save.score, {SCORE_NAME: save.score}
        self.saver.saved, self.saver.removed = [], []
        self.checkpoint(self.engine)
        return Outcome(self.saver.saved[0] if self.saver.saved else None, self.saver.removed)

    def restart(self):
        state = self.checkpoint.state_dict()
        self.start()
        self.checkpoint.load_state_dict(state)

    def listing(self):
        return [(item.priority, item.filename) for item in self.checkpoint._saved]

    def names(self):
        return sorted(path.name for path in self.folder.iterdir())

    def take_over(self, kept):
        self.checkpoint.load_state_dict({"_saved": kept.listing()})
        wanted = set(kept.names())
        for name in self.names():
            if name not in wanted:
                (self.folder / name).unlink()
        for name in wanted:
            (self.folder / name).touch()


# Random sequences.


def random_score(chooser, kind):
    if kind == "mixed":
        kind = chooser.choice(("decimals", "ties", "integers", "whole", "alike", "special", "special"))
    return {
        "decimals": lambda: round(chooser.uniform(-1, 1), 4),
        "ties": lambda: chooser.choice((0.1, 0.25, 0.5, 0.77, -0.5)),
        "integers": lambda: chooser.randint(-2, 6),
        "whole": lambda: chooser.choice((-0.0, float(chooser.randint(-2, 6)))),
        "alike": lambda: chooser.choice((0.0, 0.77, 1.0)) + chooser.randint(-4, 4) * 1e-5,  # by four decimals one or two names
        "special": lambda: chooser.choice((math.nan, math.nan, math.inf, -math.inf)),
    }[kind]()


def random_config(chooser):
    return Config(
        n_saved=chooser.choice((1, 1, 2, 2, 3, 5, None)),
        score=chooser.choice(("none", "none", "function", "function", "named")),
        greater_or_equal=chooser.random() < 0.4,
        global_step=chooser.choice(("none", "none", "step", "epoch")),
        prefix=chooser.choice(("", "", "best", "run_1")),
        include_self=chooser.random() < 0.15,
    )


def random_sequence(chooser):
    """@return the configuration and 5 to 40 events."""
    config = random_config(chooser)
    calm = chooser.random() < 0.4  # steps only rise, and scores are not made to collide
    kind = chooser.choice(("decimals",) if calm else ("decimals", "ties", "integers", "whole", "alike", "mixed", "mixed"))
    restarts = chooser.choice((0.0, 0.1, 0.25))
    kept, events, count, newest = Kept(config), [], 0, None
    for _ in range(chooser.randint(5, 40)):
        if events and chooser.random() < restarts:
            if kept.is_found_again_in_this_order() and chooser.random() < 0.6:
                events.append(Restart("open", chooser.choice((newest, chooser.choice(kept.names()))) if kept.entries else None))
            else:
                events.append(Restart("load"))
            if not calm and chooser.random() < 0.6:
                count = chooser.randint(0, count)
            continue
        if calm or count == 0 or chooser.random() > 0.12:
            count += chooser.choice((1, 1, 1, 2, 5, 10))
        epoch, step = (count, 10 * count) if config.global_step == "epoch" else ((count + 9) // 10, count)
        events.append(Save(epoch, step, random_score(chooser, kind) if config.scored else None))
        newest = kept.save(events[-1]).saved or newest
        newest = newest if newest is None or kept.lists(newest) else kept.names()[0]
    return config, events


# What is known of single rows: their events, the differences in them, and what is left.

STEPS = [1, 2, 3, 4, 5]


def scores(*values, steps=STEPS):
    return [Save(1, step, value) for step, value in zip(steps, values)]


def steps(*values):
    return [Save(1, step) for step in values]


EXAMPLES = [
    ("24", Config(2, prefix="PREFIX"), steps(0, 1, 2, 3, 4), [], ["PREFIX_m_3.pt", "PREFIX_m_4.pt"]),
    ("25", Config(None), steps(0, 1, 2), [], ["m_0.pt", "m_1.pt", "m_2.pt"]),
    ("31, 32", Config(1, global_step="epoch"), [Save(2, 1), Save(12, 1234)], [], ["m_12.pt"]),
    ("35", Config(1, "function"), scores(0.77, 0.78), [], ["m_0.7800.pt"]),
    ("37", Config(1, "named"), scores(-0.77, -0.76), [], ["m_acc=-0.7600.pt"]),
    ("43", Config(1, "named", global_step="epoch"), [Save(11, 5, 0.77), Save(12, 6, 0.78)], [], ["m_12_acc=0.7800.pt"]),
    ("46", Config(2, "function"), scores(1.2, -2.0, 3.1, -4.0), [whole_numbers_print_plain], ["m_1.2000.pt", "m_3.1000.pt"]),
    ("53", Config(2, "function", True), scores(1, 2, 2, 2), [names_are_unique], ["m_2_3.pt", "m_2_4.pt"]),
    ("133", Config(1, "function"), scores(math.nan, 0.5, 0.9), [nan_never_enters], ["m_0.9000.pt"]),
    ("134", Config(2, "function", global_step="step"), scores(0.5, math.nan, 0.9, 0.95), [nan_never_enters], ["m_3_0.9000.pt", "m_4_0.9500.pt"]),
    ("135", Config(2, "function"), scores(0.5, -math.inf, math.inf), [], ["m_0.5000.pt", "m_inf.pt"]),
    ("144", Config(2, "function"), scores(0, 1, 1, 2, 3), [names_are_unique], ["m_2.pt", "m_3.pt"]),
    ("145", Config(2, "function", global_step="step"), scores(0, 1, 1, 2, 3), [], ["m_4_2.pt", "m_5_3.pt"]),
    ("147", Config(1, "function"), scores(2, 2, 2, steps=[3, 4, 5]), [], ["m_2.pt"]),
    ("147", Config(1, "function", True, "step"), scores(2, 2, 2), [], ["m_3_2.pt"]),
    ("171", Config(1, "named"), scores(1), [whole_numbers_print_plain], ["m_acc=1.pt"]),
    ("172", Config(None, "function"), scores(-0.0, 0.00001, -0.00001), [whole_numbers_print_plain, nothing_prints_as_minus_zero, names_are_unique], ["m_0.0000.pt", "m_0.0000_3.pt", "m_0.pt"]),
    ("172", Config(None, "function"), scores(0.5, 0.5, 0.5, steps=[3, 3, 3]), [names_are_unique], ["m_0.5000.pt", "m_0.5000_3.pt", "m_0.5000_3_2.pt"]),
    ("176", Config(2), steps(10, 10, 20, 20), [the_same_step_is_overwritten_in_place], ["m_10.pt", "m_20.pt"]),
    ("177", Config(1, global_step="epoch"), [Save(1, 3), Save(2, 6), Save(2, 6)], [the_same_step_is_overwritten_in_place], ["m_2.pt"]),
    ("184", Config(2, "named", False, "epoch", "best"), [Save(1, 1, 0.2), Save(2, 2, 0.3), Save(3, 3, 0.2)], [], ["best_m_1_acc=0.2000.pt", "best_m_2_acc=0.3000.pt"]),
    ("an earlier step", Config(2), steps(10, 20) + [Restart("open", "m_10.pt")] + steps(11, 12, 13), [the_oldest_leaves], ["m_12.pt", "m_13.pt"]),
    ("an earlier step", Config(2), steps(10, 20) + [Restart("load")] + steps(9), [the_oldest_leaves], ["m_20.pt", "m_9.pt"]),
]  # fmt: skip


@dataclasses.dataclass
class Tally:
    events: int = 0
    identical: int = 0
    identical_sequences: int = 0
    explained: collections.Counter = dataclasses.field(default_factory=collections.Counter)


class IgniteDifferential(unittest.TestCase):
    def setUp(self):
        memory = "/dev/shm"  # libmarlin syncs every file; here that is not what is tested
        folder = tempfile.TemporaryDirectory(prefix="marlin_differential_", dir=memory if os.access(memory, os.W_OK) else None)
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def answers_of(self, sequences):
        """For each sequence the tool's answers, that to its configuration first."""
        lines = []
        for i, (config, events) in enumerate(sequences):
            lines += [config.line(self.folder / f"marlin_{i}"), *(event.line() for event in events)]
        done = subprocess.run([TOOL], input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=500)
        self.assertEqual(done.returncode, 0, done.stderr)
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual(len(answers), len(lines))
        result = []
        for _, events in sequences:
            result.append(answers[: 1 + len(events)])
            del answers[: 1 + len(events)]
        return result

    def compare(self, number, config, events, answers, tally):
        """@return the differences that came up, and the names that are left."""
        told, script = answers[0], [config.line("FOLDER")]
        self.assertNotIn("error", told, script)
        kept, ignite = Kept(config), Ignite(config, self.folder / f"ignite_{number}")
        came_up, warned = set(), False
        for event, told in zip(events, answers[1:]):
            script.append(event.line())
            where = "\n".join(["", *script, f"libmarlin: {told}"])
            self.assertNotIn("error", told, where)
            acting = []
            if isinstance(event, Restart):
                warned = False
                ignite.restart()
                expected, theirs = Outcome(), Outcome()
            else:
                acting = [difference for difference in DIFFERENCES if difference(kept, event)]
                steps_kept = [entry.step for entry in kept.entries]
                expected, theirs = kept.save(event), ignite.save(event)
            where += f"\nexpected:  {expected} {kept.listing()}\nIgnite:    {theirs} {ignite.listing()}\ndiffers:   {[difference.__name__ for difference in acting]}"

            # libmarlin did what its rules say.
            ours = Outcome(told["saved"], told["evicted"])
            listing = [(float(priority), name) for priority, name in told["list"]]
            if not config.scored:
                listing.sort()  # it stands in the order of age
            self.assertEqual(ours, expected, where)
            self.assertEqual(told["put"], [ours.saved] if ours.saved else [], where)
            self.assertEqual(told["directory"], kept.names(), where)
            self.assertEqual(listing, kept.listing(), where)
            self.check_warnings(config, event, told["warnings"], steps_kept if isinstance(event, Save) else [], warned, where)
            warned = warned or bool(told["warnings"])

            # Ignite did the same, unless a difference says why not.
            found = (ours, told["directory"], listing)
            known = (theirs, ignite.names(), ignite.listing())
            tally.events += 1
            if acting:
                self.assertNotEqual(found, known, "a difference that makes none" + where)
                tally.explained.update(difference.__name__ for difference in acting)
                ignite.take_over(kept)
            else:
                self.assertEqual(found, known, "not explained" + where)
                tally.identical += 1
            came_up.update(acting)
        tally.identical_sequences += not came_up
        return came_up, kept.names()

    def check_warnings(self, config, event, warnings, steps_kept, warned, where):
        """A warning says what a user should know of, and there is none otherwise."""
        if isinstance(event, Restart):
            if event.by == "load":
                self.assertEqual(warnings, [], where)
        elif config.scored:
            self.assertEqual(bool(warnings), math.isnan(event.score), where)
        elif steps_kept and event.step < min(steps_kept):
            self.assertTrue(warnings or warned, where)
        elif not steps_kept or event.step >= max(steps_kept):
            self.assertEqual(warnings, [], where)

    def test_single_rows_end_as_the_table_says(self):
        sequences = [(config, events) for _, config, events, _, _ in EXAMPLES]
        for number, (example, answers) in enumerate(zip(EXAMPLES, self.answers_of(sequences))):
            rows, config, events, differences, left = example
            with self.subTest(rows=rows, config=config):
                came_up, names = self.compare(number, config, events, answers, Tally())
                self.assertEqual(came_up, set(differences))
                self.assertEqual(names, left)
                self.assertEqual(answers[-1]["directory"], left)

    def test_random_sequences_go_as_in_ignite_but_for_the_listed_differences(self):
        seed = int(os.environ.get("MARLIN_TEST_SEED", time.time_ns() % 1_000_000))
        print(f"MARLIN_TEST_SEED={seed}, Ignite {ignite.__version__}", flush=True)
        chooser = random.Random(seed)
        sequences = [random_sequence(chooser) for _ in range(SEQUENCES)]
        tally, failures = Tally(), []
        for number, ((config, events), answers) in enumerate(zip(sequences, self.answers_of(sequences))):
            try:
                self.compare(number, config, events, answers, tally)
            except AssertionError as failure:
                failures.append(f"sequence {number} of MARLIN_TEST_SEED={seed}: {failure}")
        print(f"{tally.events} events in {SEQUENCES} sequences: {tally.identical} identical; {tally.identical_sequences} sequences from end to end")
        for difference in DIFFERENCES:
            print(f"  {tally.explained[difference.__name__]:5} events: {difference.__name__}")
        sys.stdout.flush()
        self.assertEqual(len(failures), 0, "\n\n".join(["", *failures[:MAX_REPORTED], f"{len(failures)} sequences in all"]))
        self.assertGreaterEqual(tally.identical_sequences, SEQUENCES // 10)
        for difference in DIFFERENCES:
            self.assertGreater(tally.explained[difference.__name__], 0, f"{difference.__name__} never came up: is it a difference still?")


if __name__ == "__main__":
    unittest.main(verbosity=2)
