"""--checkpointer key_metric: the plugin that keeps the final state, the best by a key metric and one every so often, through the real
program."""

import re
import signal
import subprocess
import unittest

from best_k_test import WithBestK, best_of, listing, record
from cli_support import DIGITS, STEPS, CliTest, FolderEvents, checkpoints, differing, environment, load, names

QUIET = ("--progress", "off")
USE = ("--checkpointer", "key_metric", *QUIET)
FINAL = (*USE, "--checkpointer.save_final")
KEY = (*USE, "--checkpointer.save_key_metric", "--checkpointer.key_metric_name", "val/accuracy")
ALL = (*KEY, "--checkpointer.key_metric_n_saved", 2, "--checkpointer.save_final", "--checkpointer.save_interval", 2, "--checkpointer.n_saved", 2)


def final_of(steps):
    return f"checkpoint_final_iteration={steps}.pt"


def left_by_all(scores):
    """What ALL leaves after these scores, one an epoch."""
    epochs = len(scores)
    intervals = [epoch for epoch in range(1, epochs + 1) if epoch % 2 == 0][-2:]
    best, _ = best_of(scores, 2, name="checkpoint_key_metric")
    return sorted([name for name, _ in best] + [f"checkpoint_epoch={epoch}.pt" for epoch in intervals] + [final_of(epochs * STEPS)])


class KeyMetricRunTest(WithBestK):
    def test_the_final_state(self):
        finished = self.ok("--epochs", 3, *FINAL)
        folder = self.path("checkpoints")
        self.assertEqual(listing(folder), [final_of(3 * STEPS)])
        self.assertHolds(folder, [(final_of(3 * STEPS), 2)])
        self.assertEqual(record(folder / final_of(3 * STEPS))["cause"], "end")
        self.assertDone(finished, 3, checkpoint=f"checkpoints/{final_of(3 * STEPS)}")

    def test_the_best_two(self):
        self.ok("--epochs", 12, *KEY, "--checkpointer.key_metric_n_saved", 2)
        best, _ = best_of(self.scores(), 2, name="checkpoint_key_metric")
        self.assertEqual(listing(self.path("checkpoints")), sorted(name for name, _ in best))
        self.assertHolds(self.path("checkpoints"), best)

    def test_the_lowest_loss(self):
        self.ok("--epochs", 4, *USE, "--checkpointer.save_key_metric", "--checkpointer.key_metric_name", "val/loss", "--checkpointer.key_metric_negative_sign")
        best, _ = best_of([-loss for loss in self.scores("val/loss", 4)], 1, name="checkpoint_key_metric")
        self.assertEqual(listing(self.path("checkpoints")), [best[0][0]])
        self.assertHolds(self.path("checkpoints"), best)

    def test_all_three_parts(self):
        finished = self.ok("--epochs", 5, *ALL)
        self.assertEqual(listing(self.path("checkpoints")), left_by_all(self.scores(epochs=5)))
        self.assertDone(finished, 5)
        for name in listing(self.path("checkpoints")):
            self.assertIn(f"saved checkpoints/{name} ", finished.err, "each is told")

    def test_fixed_names_and_a_prefix(self):
        self.ok("--epochs", 3, *KEY, "--checkpointer.save_final", "--checkpointer.final_filename", "final.pt", "--checkpointer.key_metric_filename", "best.pt", "--checkpointer.save_interval", 1,
                "--checkpointer.file_prefix", "run")
        folder = self.path("checkpoints")
        self.assertEqual(listing(folder), ["best.pt", "final.pt", "run_checkpoint_epoch=1.pt", "run_checkpoint_epoch=2.pt", "run_checkpoint_epoch=3.pt"])
        self.assertHolds(folder, [("final.pt", 2), ("best.pt", max(range(3), key=lambda epoch: self.scores(epochs=3)[epoch]))])

    def test_iterations(self):
        self.ok("--epochs", 2, *USE, "--checkpointer.save_interval", 20, "--checkpointer.epoch_level", "false")
        self.assertEqual(listing(self.path("checkpoints")), ["checkpoint_iteration=20.pt", "checkpoint_iteration=40.pt"])

    def test_the_lists_in_the_files_of_the_key_metric(self):
        self.ok("--epochs", 2, *KEY, "--checkpointer.key_metric_save_state", "--checkpointer.save_final")
        folder = self.path("checkpoints")
        best, _ = best_of(self.scores(epochs=2), 1, name="checkpoint_key_metric")
        root = load(folder / best[0][0])
        self.assertEqual(root["checkpointer"]["key_metric"], {"_saved": [(self.scores()[best[0][1]], best[0][0])], "last": best[0][0]})
        self.assertNotIn("checkpointer", load(folder / final_of(2 * STEPS)))

    def test_one_part_of_the_state(self):
        self.ok("--epochs", 1, *FINAL, "--checkpointer.save_dict", "module_interface_state")
        name = f"module_interface_state_final_iteration={STEPS}.pt"
        self.assertEqual(listing(self.path("checkpoints")), [name])
        self.assertEqual(list(load(self.path("checkpoints", name))), ["module_interface_state"])

    def test_beside_others_each_with_its_options(self):
        self.ok("--epochs", 4, "--checkpointer", "default,best_k,key_metric", "--checkpointer.default.keep_last", 2, "--checkpointer.default.save_dir", "a", "--checkpointer.best_k.n_saved", 2,
                "--checkpointer.best_k.links", "false", "--checkpointer.best_k.save_dir", "b", "--checkpointer.best_k.filename_prefix", "k", "--checkpointer.key_metric.save_final", "--checkpointer.key_metric.save_dir", "c", *QUIET)
        self.assertEqual(listing(self.path("a")), checkpoints([2, 3]))
        self.assertEqual(listing(self.path("b")), sorted(f"k_checkpoint_{epoch * STEPS}.pt" for epoch in (3, 4)))
        self.assertEqual(listing(self.path("c")), [final_of(4 * STEPS)])

    def test_its_name_stands_before_its_lines(self):
        finished = self.ok("--epochs", 2, *USE, "--checkpointer.save_interval", 1, "--checkpointer.n_saved", 1, "--checkpointer.name", "saver")
        self.assertRegex(finished.err, r"(?m)^\[\d\d:\d\d:\d\d\] \[info\] saver: removed checkpoints/checkpoint_epoch=1\.pt")

    def test_its_options_stand_in_the_help(self):
        shown = self.ok("--help", *FINAL).out
        for option in ("save_dir", "save_dict", "name", "file_prefix", "save_final", "final_filename", "save_key_metric", "key_metric_name", "key_metric_n_saved", "key_metric_filename", "key_metric_save_state",
                       "key_metric_greater_or_equal", "key_metric_negative_sign", "epoch_level", "save_interval", "n_saved", "delete_existing_checkpoints", "keep", "load_dir", "load_filename", "log_level", "period"):
            self.assertRegex(shown, rf"(?m)^  --checkpointer\.{option}\b")


class KeyMetricRefusalTest(CliTest):
    def test_a_fresh_start_in_a_used_folder_is_refused_with_the_words_to_type(self):
        self.ok("--epochs", 1, *FINAL)
        self.refused(2, "--epochs", 1, *FINAL, says=("checkpoints", "--resume auto", "--checkpointer.delete_existing_checkpoints"))
        self.put("checkpoints/notes.txt", "mine")
        self.ok("--epochs", 2, *FINAL, "--checkpointer.delete_existing_checkpoints")
        self.assertEqual(listing(self.path("checkpoints")), [final_of(2 * STEPS), "notes.txt"])

    def test_a_metric_that_there_is_not_is_said_with_those_there_are(self):
        self.fails(1, "--epochs", 3, *USE, "--checkpointer.save_key_metric", "--checkpointer.key_metric_name", "val/f1", says=("val/f1", "train/loss", "val/loss", "val/accuracy"))

    def test_bad_options(self):
        for args, says in (
            ((), "save_final"),  # no part is on
            (("--checkpointer.save_key_metric",), "key_metric_name"),
            (("--checkpointer.save_interval", -1), "save_interval"),
            (("--checkpointer.save_interval", 1, "--checkpointer.n_saved", 0), ("n_saved", "at least 1")),
            ((*KEY[len(USE):], "--checkpointer.key_metric_n_saved", 0), ("key_metric_n_saved", "at least 1")),
            ((*KEY[len(USE):], "--checkpointer.key_metric_n_saved", 2, "--checkpointer.key_metric_filename", "model.pt"), ("key_metric_filename", "key_metric_n_saved")),
            ((*KEY[len(USE):], "--checkpointer.save_final", "--checkpointer.key_metric_filename", "model.pt", "--checkpointer.final_filename", "model.pt"), ("final_filename", "key_metric_filename")),
            ((*FINAL[len(USE):], "--checkpointer.final_filename", "a/b.pt"), "final_filename"),
            ((*KEY[len(USE):], "--checkpointer.key_metric_filename", "../b.pt"), "key_metric_filename"),
            ((*FINAL[len(USE):], "--checkpointer.file_prefix", "a/b"), "file_prefix"),
            ((*FINAL[len(USE):], "--checkpointer.save_dict", ""), "save_dict"),
            ((*FINAL[len(USE):], "--checkpointer.save_dir", ""), "save_dir"),
            ((*FINAL[len(USE):], "--checkpointer.keep", "newest:3"), ("keep", "newest:3")),
        ):
            with self.subTest(args):
                self.refused(2, *USE, *args, says=says)


class KeyMetricKillTest(WithBestK):
    """Killed while it saves; then resumed, with the lists that were there."""

    def killed_run(self, folder, awaited, event):
        """Killed as soon as a name that begins so has been made."""
        for attempt in range(20):
            target = self.path(f"{folder}_{attempt}")
            target.mkdir()
            events, seen = FolderEvents(target), False
            words = [str(DIGITS), "--epochs", "12", *map(str, ALL), "--checkpointer.save_dir", str(target)]
            process = subprocess.Popen(words, cwd=self.dir, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
            while process.poll() is None and not seen:
                seen = any(kind == event and name.startswith(awaited) for kind, name in events.wait(1))
            process.send_signal(signal.SIGKILL)
            landed = process.wait(60) == -signal.SIGKILL
            events.close()
            if landed and not (target / final_of(12 * STEPS)).exists() and not (target / "checkpoint_epoch=12.pt").exists():
                return target
        self.fail("no kill came before the end in 20 attempts")

    def test_the_lists_go_on_as_if_it_had_not_been_killed(self):
        self.ok("--epochs", 12, *ALL, "--checkpointer.save_dir", "straight")
        straight = self.path("straight")
        self.assertEqual(listing(straight), left_by_all(self.scores()))
        for number, (awaited, event) in enumerate((("checkpoint_epoch=2.pt", FolderEvents.MOVED_TO), ("checkpoint_epoch=6.pt", FolderEvents.MOVED_TO), (".checkpoint_epoch=4.pt.", FolderEvents.CREATE),
                                                   ("checkpoint_epoch=2.pt", FolderEvents.DELETE))):
            with self.subTest(awaited):
                folder = self.killed_run(f"run_{number}", awaited, event)
                whole = [name for name in listing(folder) if not name.startswith(".")]
                epochs = max(record(folder / name)["epoch"] for name in whole) + 1
                for name in whole:
                    self.assertIn("module_interface_state", load(folder / name), "whole, whenever it was killed")
                finished = self.ok("--epochs", 12, *ALL, "--resume", "auto", "--checkpointer.save_dir", folder)
                self.assertRegex(finished.err, rf"resumed from {re.escape(str(folder))}/checkpoint_\S+\.pt: {epochs} epochs, {epochs * STEPS} steps done")
                self.assertNotIn("warning", finished.err)
                self.assertDone(finished, 12)
                self.assertEqual(listing(folder), listing(straight), "the lists over the resume, and nothing that the killed save left")
                for name in listing(folder):
                    self.assertEqual(differing(folder / name, straight / name), [], name)

    def test_only_the_whole_state_can_be_gone_on_from(self):
        self.ok("--epochs", 1, *FINAL, "--checkpointer.save_dict", "module_interface_state")
        self.fails(3, "--epochs", 2, *FINAL, "--checkpointer.save_dict", "module_interface_state", "--resume", "must")
        self.assertEqual([name for name in names(self.path("checkpoints")) if "final" in name], [f"module_interface_state_final_iteration={STEPS}.pt"])


if __name__ == "__main__":
    unittest.main()
