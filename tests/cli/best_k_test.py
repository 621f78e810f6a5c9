"""--checkpointer best_k: the plugin that keeps the best by a score, or the newest, through the real program."""

import json
import os
import re
import signal
import subprocess
import zipfile
import unittest

from cli_support import DIGITS, STEPS, CliTest, FolderEvents, WithRun, checkpoints, differing, environment, load, names

QUIET = ("--progress", "off")
USE = ("--checkpointer", "best_k", *QUIET)
BEST = (*USE, "--checkpointer.best_k.score_name", "val/accuracy", "--checkpointer.best_k.n_saved", 3)
LINKS = ["best.pt", "last.pt"]


def listing(folder):
    """What lies in a folder, hidden files and links too, but the bare models that end runs."""
    return [name for name in names(folder) if not re.fullmatch(r".*_model_\d+\.pt", name)]


def score_text(score):
    """As names have it: whole numbers as they are, others with 4 decimals."""
    if score == int(score):
        return str(int(score))
    text = f"{score:.4f}"
    return text[1:] if text == "-0.0000" else text


def best_of(scores, n_saved, name="checkpoint_val_accuracy", or_equal=False):
    """The list after these scores, one an epoch: (name, epoch), the first to leave first; and whether the last one entered."""
    kept = []  # (score, epoch, name)
    entered = False
    for epoch, score in enumerate(scores):
        entered = n_saved is None or len(kept) < n_saved or score > kept[0][0] or (or_equal and score >= kept[0][0])
        if not entered:
            continue
        text = f"{name}={score_text(score)}.pt"
        if text in [item[2] for item in kept]:
            text = f"{name}={score_text(score)}_{(epoch + 1) * STEPS}.pt"
        kept = sorted(kept + [(score, epoch, text)], key=lambda item: item[:2])
        if n_saved is not None:
            kept = kept[-n_saved:]
    return [(item[2], item[1]) for item in kept], entered


def record(file):
    """The commit record of a file."""
    with zipfile.ZipFile(file) as archive:
        inside = next(name for name in archive.namelist() if name.split("/", 1)[1] == "marlin.json")
        return json.loads(archive.read(inside))


class WithBestK(WithRun):
    """`base` has what the built-in checkpointer keeps of 12 epochs of the same run, to tell from it what should be kept."""

    base_epochs = 12

    def scores(self, metric="val/accuracy", epochs=None):
        return [record(self.base / f"checkpoint_{epoch}.pt")["metrics"][metric] for epoch in range(epochs or self.base_epochs)]

    def assertLeads(self, folder, link, target):
        self.assertEqual(os.readlink(folder / link), target, "a relative link")
        self.assertTrue((folder / link).is_file())

    def assertHolds(self, folder, kept):
        """Each of these files is the state of its epoch, and Python opens it."""
        for name, epoch in kept:
            self.assertEqual(differing(folder / name, self.base / f"checkpoint_{epoch}.pt"), [], name)
            self.assertEqual(load(folder / name)["trainer_state"]["last_epoch"], epoch, name)


class BestKRunTest(WithBestK):
    def test_the_three_best_of_five_epochs(self):
        finished = self.ok("--epochs", 5, *BEST)
        folder = self.path("checkpoints")
        kept, entered = best_of(self.scores(epochs=5), 3)
        self.assertTrue(entered, "the last epoch is one of the best, so that no other file is needed to go on from")
        self.assertEqual(listing(folder), sorted([name for name, _ in kept] + LINKS))
        self.assertHolds(folder, kept)
        self.assertLeads(folder, "best.pt", kept[-1][0])
        self.assertLeads(folder, "last.pt", next(name for name, epoch in kept if epoch == 4))
        self.assertDone(finished, 5, checkpoint="checkpoints/" + next(name for name, epoch in kept if epoch == 4))
        for _, epoch in kept:
            self.assertRegex(finished.err, rf"saved checkpoints/checkpoint_val_accuracy=\S+\.pt \(epoch {epoch}, ")

    def test_equal_scores_have_names_of_their_own(self):
        self.ok("--epochs", 12, *BEST, "--checkpointer.best_k.keep_latest", "false")
        kept, _ = best_of(self.scores(), 3)
        folder = self.path("checkpoints")
        self.assertEqual(listing(folder), sorted([name for name, _ in kept] + LINKS))
        self.assertHolds(folder, kept)
        self.assertLeads(folder, "best.pt", kept[-1][0])
        for name, epoch in kept:
            self.assertEqual(record(folder / name)["score"], self.scores()[epoch])

    def test_or_equal_lets_the_later_of_equals_in(self):
        self.ok("--epochs", 12, *USE, "--checkpointer.score_name", "val/accuracy", "--checkpointer.greater_or_equal", "--checkpointer.keep_latest", "false")
        kept, _ = best_of(self.scores(), 1, or_equal=True)
        self.assertEqual(kept[0][1], max(range(12), key=lambda epoch: (self.scores()[epoch], epoch)))
        self.assertHolds(self.path("checkpoints"), [(os.readlink(self.path("checkpoints", "best.pt")), kept[0][1])])
        self.assertEqual(len(listing(self.path("checkpoints"))), 1 + len(LINKS))

    def test_the_lowest_loss(self):
        self.ok("--epochs", 4, *USE, "--checkpointer.score_name", "val/loss", "--checkpointer.score_sign", -1, "--checkpointer.n_saved", 2)
        kept, _ = best_of([-loss for loss in self.scores("val/loss", 4)], 2, name="checkpoint_val_loss")
        self.assertEqual([epoch for _, epoch in kept], [2, 3])
        self.assertEqual(listing(self.path("checkpoints")), sorted([name for name, _ in kept] + LINKS))

    def test_all_of_them(self):
        self.ok("--epochs", 4, *USE, "--checkpointer.score_name", "val/accuracy", "--checkpointer.n_saved", "all")
        kept, _ = best_of(self.scores(epochs=4), None)
        self.assertEqual(len(kept), 4)
        self.assertEqual(listing(self.path("checkpoints")), sorted([name for name, _ in kept] + LINKS))

    def test_without_a_score_the_newest_stay(self):
        finished = self.ok("--epochs", 5, *USE, "--checkpointer.n_saved", 2)
        folder = self.path("checkpoints")
        self.assertEqual(listing(folder), [f"checkpoint_{5 * STEPS}.pt", f"checkpoint_{4 * STEPS}.pt", "last.pt"], "and no best, as nothing says which it is")
        self.assertLeads(folder, "last.pt", f"checkpoint_{5 * STEPS}.pt")
        self.assertDone(finished, 5, checkpoint=f"checkpoints/checkpoint_{5 * STEPS}.pt")

    def test_names_may_count_epochs(self):
        self.ok("--epochs", 3, *USE, "--checkpointer.n_saved", 2, "--checkpointer.global_step", "epoch", "--checkpointer.filename_prefix", "run", "--checkpointer.links", "false")
        self.assertEqual(listing(self.path("checkpoints")), ["run_checkpoint_2.pt", "run_checkpoint_3.pt"])

    def test_a_pattern(self):
        self.ok("--epochs", 2, *USE, "--checkpointer.n_saved", "all", "--checkpointer.filename_pattern", "digits-{global_step:05d}.{ext}", "--checkpointer.links", "false")
        self.assertEqual(listing(self.path("checkpoints")), [f"digits-{step:05d}.pt" for step in (STEPS, 2 * STEPS)])

    def test_alone_it_keeps_the_newest_state_to_go_on_from(self):
        # The highest loss is that of the first epoch, so that no other enters.
        finished = self.ok("--epochs", 4, *USE, "--checkpointer.score_name", "val/loss")
        folder = self.path("checkpoints")
        best = f"checkpoint_val_loss={score_text(self.scores('val/loss')[0])}.pt"
        self.assertEqual(listing(folder), sorted([best, f"checkpoint_latest_{4 * STEPS}.pt", *LINKS]))
        self.assertHolds(folder, [(best, 0), (f"checkpoint_latest_{4 * STEPS}.pt", 3)])
        self.assertLeads(folder, "best.pt", best)
        self.assertLeads(folder, "last.pt", f"checkpoint_latest_{4 * STEPS}.pt")
        self.assertDone(finished, 4, checkpoint=f"checkpoints/checkpoint_latest_{4 * STEPS}.pt")
        resumed = self.ok("--epochs", 5, *USE, "--checkpointer.score_name", "val/loss", "--resume", "auto")
        self.assertIn(f"resumed from checkpoints/checkpoint_latest_{4 * STEPS}.pt: 4 epochs", resumed.err)
        self.assertEqual(listing(folder), sorted([best, f"checkpoint_latest_{5 * STEPS}.pt", *LINKS]))

    def test_beside_the_built_in_one_each_with_its_options(self):
        self.ok("--epochs", 4, "--checkpointer", "default,best_k", "--checkpointer.default.keep_last", 2, "--checkpointer.default.save_dir", "newest", "--checkpointer.best_k.score_name", "val/loss",
                "--checkpointer.best_k.save_dir", "best", *QUIET)
        self.assertEqual(names(self.path("newest")), checkpoints([2, 3], model=3))
        best = f"checkpoint_val_loss={score_text(self.scores('val/loss')[0])}.pt"
        self.assertEqual(listing(self.path("best")), sorted([best, *LINKS]), "the other one keeps the newest state")
        self.assertLeads(self.path("best"), "last.pt", best)

    def test_beside_the_built_in_one_in_one_folder(self):
        words = ("--checkpointer", "default,best_k", "--checkpointer.best_k.score_name", "val/accuracy", "--checkpointer.best_k.n_saved", 2, *QUIET)
        self.ok("--epochs", 4, *words)
        kept, _ = best_of(self.scores(epochs=4), 2)
        folder = self.path("checkpoints")
        self.assertEqual(listing(folder), sorted([name for name, _ in kept] + [f"checkpoint_{epoch}.pt" for epoch in range(4)] + LINKS))
        finished = self.ok("--epochs", 5, *words, "--resume", "auto")
        self.assertRegex(finished.err, r"resumed from checkpoints/checkpoint_\S+\.pt: 4 epochs")
        kept, _ = best_of(self.scores(epochs=5), 2)
        self.assertEqual(listing(folder), sorted([name for name, _ in kept] + [f"checkpoint_{epoch}.pt" for epoch in range(5)] + LINKS))

    def test_what_leaves_the_list_stays_while_a_rule_keeps_it(self):
        self.ok("--epochs", 6, *USE, "--checkpointer.score_name", "val/loss", "--checkpointer.score_sign", -1, "--checkpointer.keep", "every:3", "--checkpointer.links", "false")
        scores = [-loss for loss in self.scores("val/loss", 6)]
        stays = {f"checkpoint_val_loss={score_text(scores[epoch])}.pt" for epoch in (2, 5)}
        self.assertEqual(listing(self.path("checkpoints")), sorted(stays), "the third and the sixth, which is the best, too")

    def test_parts_of_the_state(self):
        self.ok("--epochs", 2, *USE, "--checkpointer.objects", "module_interface_state", "--checkpointer.links", "false")
        self.assertEqual(listing(self.path("checkpoints")), [f"module_interface_state_{2 * STEPS}.pt"])
        root = load(self.path("checkpoints", f"module_interface_state_{2 * STEPS}.pt"))
        self.assertEqual(list(root), ["module_interface_state"])

    def test_the_list_in_every_file(self):
        self.ok("--epochs", 3, *USE, "--checkpointer.n_saved", 2, "--checkpointer.include_self", "--checkpointer.links", "false")
        root = load(self.path("checkpoints", f"checkpoint_{3 * STEPS}.pt"))
        self.assertEqual(root["checkpointer"], {"_saved": [(2 * STEPS, f"checkpoint_{2 * STEPS}.pt"), (3 * STEPS, f"checkpoint_{3 * STEPS}.pt")], "last": f"checkpoint_{3 * STEPS}.pt"})

    def test_its_options_stand_in_the_help(self):
        shown = self.ok("--help", *USE).out
        for option in ("save_dir", "create_dir", "require_empty", "delete_existing_checkpoints", "filename_prefix", "filename_pattern", "objects", "n_saved", "score_name", "score_sign", "greater_or_equal",
                       "global_step", "include_self", "keep_latest", "links", "keep", "load_dir", "load_filename", "log_level", "save_interval", "archived", "save_as_state_dict", "period"):
            self.assertRegex(shown, rf"(?m)^  --checkpointer\.{option}\b")


class BestKRefusalTest(CliTest):
    def test_a_fresh_start_in_a_used_folder_is_refused_with_the_words_to_type(self):
        words = (*USE, "--checkpointer.score_name", "val/accuracy")
        self.ok("--epochs", 1, *words)
        self.refused(2, "--epochs", 1, *words, says=("checkpoints", "--resume auto", "--checkpointer.delete_existing_checkpoints"))
        self.ok("--epochs", 2, *words, "--resume", "auto")

    def test_told_to_start_over_it_removes_its_own_names(self):
        words = (*USE, "--checkpointer.n_saved", 2)
        self.ok("--epochs", 4, *words)
        self.put("checkpoints/notes.txt", "mine")
        self.put("checkpoints/other_46.pt", "mine")
        self.ok("--epochs", 1, *words, "--checkpointer.delete_existing_checkpoints")
        self.assertEqual(listing(self.path("checkpoints")), [f"checkpoint_{STEPS}.pt", "last.pt", "notes.txt", "other_46.pt"])

    def test_names_of_others_are_no_hindrance(self):
        for name in ("other_checkpoint_23.pt", "checkpoint_23.txt", "readme.md"):
            self.put(f"checkpoints/{name}", "mine")
        self.ok("--epochs", 1, *USE, "--checkpointer.links", "false")
        self.assertEqual(listing(self.path("checkpoints")), sorted(["other_checkpoint_23.pt", "checkpoint_23.txt", "readme.md", f"checkpoint_{STEPS}.pt"]))

    def test_a_missing_folder_is_refused_if_none_may_be_made(self):
        self.refused(2, *USE, "--checkpointer.create_dir", "false", says="checkpoints")

    def test_a_metric_that_there_is_not_is_said_with_those_there_are(self):
        # No later epoch would mend that, so the run ends; what it has learned is kept where no run takes it for good.
        self.fails(1, "--epochs", 3, *USE, "--checkpointer.score_name", "val/f1", says=("'best_k'", "val/f1", "train/loss", "val/loss", "val/accuracy"))
        self.assertEqual([name for name in listing(self.path("checkpoints")) if "val_f1" in name], [])

    def test_bad_options(self):
        for args, says in (
            (("--checkpointer.n_saved", 0), ("n_saved", "at least 1")),
            (("--checkpointer.n_saved", "some"), "n_saved"),
            (("--checkpointer.score_sign", 0), "score_sign"),
            (("--checkpointer.score_sign", 2), "score_sign"),
            (("--checkpointer.global_step", "iteration"), "--checkpointer.global_step: must be one of auto, step, epoch, got 'iteration'"),
            (("--checkpointer.keep_latest", "maybe"), "--checkpointer.keep_latest: must be one of auto, true, false, got 'maybe'"),
            (("--checkpointer.filename_pattern", "{random_key}.{ext}"), ("filename_pattern", "random_key")),
            (("--checkpointer.filename_pattern", "{name"), "filename_pattern"),
            (("--checkpointer.filename_pattern", "{name}/{global_step}.pt"), "filename_pattern"),
            (("--checkpointer.filename_pattern", "{name}_{score}.pt"), ("filename_pattern", "score")),
            (("--checkpointer.filename_pattern", ""), "filename_pattern"),
            (("--checkpointer.filename_prefix", "a/b"), "filename_prefix"),
            (("--checkpointer.objects", "module_interface_state,nothing_such"), ("objects", "nothing_such")),
            (("--checkpointer.objects", ""), "objects"),
            (("--checkpointer.keep", "best:0:val/loss"), ("keep", "best:0:val/loss")),
            (("--checkpointer.keep", "newest:3"), ("keep", "newest:3")),
            (("--checkpointer.save_dir", ""), "save_dir"),
        ):
            with self.subTest(args):
                self.refused(2, *USE, *args, says=says)

    def test_a_file_where_the_folder_should_be(self):
        self.put("checkpoints", "a file")
        self.refused(2, *USE, says="checkpoints")

    def test_words_of_ignites_older_versions(self):
        finished = self.ok("--epochs", 1, *USE, "--checkpointer.save_interval", 1, "--checkpointer.archived", "false", "--checkpointer.save_as_state_dict", "true")
        warnings = [line for line in finished.err.splitlines() if "[warning]" in line]
        for word in ("save_interval", "archived", "save_as_state_dict"):
            self.assertTrue(any(word in line for line in warnings), str(finished))
        for args, says in ((("--checkpointer.save_interval", 2), ("save_interval", "period")), (("--checkpointer.save_as_state_dict", "false"), "save_as_state_dict")):
            with self.subTest(args):
                self.refused(2, *USE, *args, "--checkpointer.save_dir", "another", says=says)


class BestKKillTest(WithBestK):
    """Killed while it saves; then resumed, with the list that was there."""

    def killed_run(self, folder, saves, hidden):
        """Killed as soon as so many of its files have been begun (hidden: their temporary names) or have their names."""
        for attempt in range(20):
            target = self.path(f"{folder}_{attempt}")
            target.mkdir()
            events, seen = FolderEvents(target), 0
            words = [str(DIGITS), "--epochs", "12", *map(str, BEST), "--checkpointer.save_dir", str(target)]
            process = subprocess.Popen(words, cwd=self.dir, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
            while process.poll() is None and seen < saves:
                for event, name in events.wait(1):
                    seen += event == (events.CREATE if hidden else events.MOVED_TO) and name.startswith(".checkpoint_" if hidden else "checkpoint_")
            process.send_signal(signal.SIGKILL)
            landed = process.wait(60) == -signal.SIGKILL
            events.close()
            if landed and not any(record(target / name)["epoch"] == 11 for name in names(target) if name.startswith("checkpoint_") and "_model_" not in name):
                return target
        self.fail("no kill came before the end in 20 attempts")

    def test_the_list_goes_on_as_if_it_had_not_been_killed(self):
        self.ok("--epochs", 12, *BEST, "--checkpointer.save_dir", "straight")
        straight = self.path("straight")
        kept, entered = best_of(self.scores(), 3)
        latest = [] if entered else [f"checkpoint_latest_{12 * STEPS}.pt"]
        self.assertEqual(listing(straight), sorted([name for name, _ in kept] + latest + LINKS))
        for saves, hidden in ((2, False), (5, False), (9, False), (5, True), (9, True)):
            with self.subTest(saves=saves, hidden=hidden):
                folder = self.killed_run(f"run_{saves}_{hidden}", saves, hidden)
                whole = [name for name in listing(folder) if name.startswith("checkpoint_")]
                self.assertTrue(whole)
                for name in whole:
                    self.assertIn("module_interface_state", load(folder / name), "whole, whenever it was killed")
                epochs = max(record(folder / name)["epoch"] for name in whole) + 1
                finished = self.ok("--epochs", 12, *BEST, "--resume", "auto", "--checkpointer.save_dir", folder)
                self.assertRegex(finished.err, rf"resumed from {re.escape(str(folder))}/checkpoint_\S+\.pt: {epochs} epochs, {epochs * STEPS} steps done")
                self.assertNotIn("warning", finished.err)
                self.assertDone(finished, 12)
                self.assertEqual(listing(folder), listing(straight), "three of the list, over the resume, and nothing that the killed save left")
                self.assertHolds(folder, kept)
                for link in LINKS:
                    self.assertLeads(folder, link, os.readlink(straight / link))

    def test_a_broken_newest_one_is_passed_over(self):
        self.ok("--epochs", 3, *USE, "--checkpointer.n_saved", 3)
        folder = self.path("checkpoints")
        file = folder / f"checkpoint_{3 * STEPS}.pt"
        file.write_bytes(file.read_bytes()[:5000])
        finished = self.ok("--epochs", 4, *USE, "--checkpointer.n_saved", 3, "--resume", "auto")
        self.assertRegex(finished.err, rf"\[warning\] [^\n]*checkpoint_{3 * STEPS}\.pt")
        self.assertIn(f"resumed from checkpoints/checkpoint_{2 * STEPS}.pt: 2 epochs", finished.err)
        self.assertDone(finished, 4)
        for name in names(folder):
            if name.startswith("checkpoint_"):
                (folder / name).write_bytes(b"torn")
        self.fails(3, "--epochs", 5, *USE, "--checkpointer.n_saved", 3, "--resume", "auto")


if __name__ == "__main__":
    unittest.main()
