"""Going on, as a user types it: from which file, with what left to do, and to exactly the same end."""

import os
import re
import shutil
import unittest

from cli_support import STEPS, WithRun, bits, checkpoints, differing, environment, load, names

QUIET = ("--progress", "off")


class ResumeTest(WithRun):
    base_epochs = 3

    def go_on(self, *args, source, epochs=4, started_at=3):
        finished = self.ok("--epochs", epochs, *args, *QUIET)
        self.assertIn(f"resumed from {source}: {started_at} epochs, {started_at * STEPS} steps done", finished.err)
        self.assertDone(finished, epochs)
        return finished

    def test_auto_starts_afresh_and_goes_on(self):
        first = self.ok("--resume", "auto", "--epochs", 2, *QUIET)
        self.assertDone(first, 2)
        self.assertNotIn("resumed", first.err)
        self.assertEqual(first.err.count("[info] no checkpoint to resume from: starting afresh\n"), 1, first.err)
        self.assertNotIn("afresh", self.ok("--epochs", 1, "--checkpointer.save_dir", "other", *QUIET).err, "nobody asked")
        self.go_on("--resume", "auto", source="checkpoints/checkpoint_1.pt", started_at=2)
        self.assertEqual(names(self.path("checkpoints")), checkpoints([0, 1, 2, 3], model=1) + ["checkpoint_model_3.pt"])

    def test_epochs_are_a_total(self):
        self.take_base()
        finished = self.go_on("--resume", "auto", source="checkpoints/checkpoint_2.pt", epochs=5)
        self.assertRegex(finished.out, r"\Aepoch=3 global_step=92 ")

    def test_auto_with_an_empty_folder_or_strangers_only(self):
        self.put("checkpoints/notes.txt")
        finished = self.ok("--resume", "auto", *QUIET)
        self.assertNotIn("resumed", finished.err)

    def test_must(self):
        self.refused(3, "--resume", "must", says=("no checkpoint", "checkpoints", "--resume auto"))
        self.take_base()
        self.go_on("--resume", "must", source="checkpoints/checkpoint_2.pt")

    def test_a_path_to_a_file(self):
        self.take_base(to="other")
        self.go_on("--resume", "other/checkpoint_1.pt", source="other/checkpoint_1.pt", started_at=2)
        self.assertEqual(names(self.path("checkpoints")), checkpoints([2, 3], model=3))
        self.assertEqual(names(self.path("other")), names(self.base))

    def test_a_path_to_a_file_of_any_name(self):
        self.copy(self.base / "checkpoint_2.pt", "my model")
        self.go_on("--resume", "./my model", source="./my model")
        self.copy(self.base / "checkpoint_2.pt", "x/checkpoint_77.pt")
        self.go_on("--resume", self.path("x/checkpoint_77.pt"), "--checkpointer.save_dir", "y", source=self.path("x/checkpoint_77.pt"))
        self.assertEqual(names(self.path("y")), checkpoints([3], model=3), "the epoch is taken from the state, not from the name")

    def test_a_path_to_a_folder_is_a_must(self):
        self.take_base(to="other")
        self.go_on("--resume", "./other", source="./other/checkpoint_2.pt")
        self.path("empty").mkdir()
        self.refused(3, "--resume", "./empty", "--checkpointer.save_dir", "new", says=("no checkpoint", "./empty"))
        self.refused(3, "--resume", "./nosuch", "--checkpointer.save_dir", "new", says="./nosuch")

    def test_load_dir_means_must(self):
        self.take_base(to="other")
        self.go_on("--checkpointer.load_dir", "other", source="other/checkpoint_2.pt")
        self.path("empty").mkdir()
        self.refused(3, "--checkpointer.load_dir", "empty", "--checkpointer.save_dir", "new", says=("no checkpoint", "empty"))

    def test_load_dir_comes_before_save_dir(self):
        self.take_base("checkpoint_0.pt", to="other")
        self.take_base()
        self.go_on("--resume", "auto", "--checkpointer.load_dir", "other", source="other/checkpoint_0.pt", started_at=1)

    def test_auto_looks_into_save_dir_if_load_dir_has_none(self):
        self.path("empty").mkdir()
        self.take_base()
        self.go_on("--resume", "auto", "--checkpointer.load_dir", "empty", source="checkpoints/checkpoint_2.pt")

    def test_load_filename_beats_the_search_whatever_its_name(self):
        self.take_base(to="other")
        self.copy(self.base / "checkpoint_0.pt", "other/custom_filename.tar")
        self.go_on("--checkpointer.load_dir", "other", "--checkpointer.load_filename", "custom_filename.tar", source="other/custom_filename.tar", started_at=1)

    def test_load_filename_missing_is_an_error(self):
        self.take_base(to="other")
        self.refused(3, "--checkpointer.load_dir", "other", "--checkpointer.load_filename", "nosuch.pt", says="other/nosuch.pt: open: No such file")

    def test_never_beats_load_dir(self):
        self.take_base(to="other")
        finished = self.ok("--resume", "never", "--checkpointer.load_dir", "other", *QUIET)
        self.assertNotIn("resumed", finished.err)

    def test_nothing_left_to_do(self):
        self.take_base()
        before = {p.name: p.stat().st_mtime_ns for p in self.path("checkpoints").iterdir()}
        for _ in range(2):
            finished = self.ok("--epochs", 3, "--resume", "auto", "--writers", "stdout,jsonl")
            self.assertIn("nothing to do: 3 of", finished.err)
            self.assertDone(finished, 3, kind="nothing to do", checkpoint="checkpoints/checkpoint_2.pt")
            self.assertEqual(finished.out.count("\n"), 1)
            self.assertEqual({p.name: p.stat().st_mtime_ns for p in self.path("checkpoints").iterdir()}, before)
            self.assertEqual(names(self.dir), ["checkpoints"])

    def test_nothing_left_to_do_writes_the_last_model_file_if_it_is_missing(self):
        self.take_base("checkpoint_1.pt", "checkpoint_2.pt")
        before = {p.name: p.stat().st_mtime_ns for p in self.path("checkpoints").iterdir()}
        self.ok("--epochs", 3, "--resume", "auto")
        after = {p.name: p.stat().st_mtime_ns for p in self.path("checkpoints").iterdir()}
        model = after.pop("checkpoint_model_2.pt")
        self.assertEqual(after, before)
        self.assertEqual(self.path("checkpoints/checkpoint_model_2.pt").read_bytes(), (self.base / "checkpoint_model_2.pt").read_bytes())
        self.ok("--epochs", 3, "--resume", "auto")
        self.assertEqual(self.path("checkpoints/checkpoint_model_2.pt").stat().st_mtime_ns, model)

    def test_nothing_left_to_do_with_saving_off_or_no_models_wanted(self):
        for args in (("--checkpointer.checkpoint", "false"), ("--checkpointer.model_state_save_dir", "")):
            with self.subTest(args):
                shutil.rmtree(self.path("checkpoints"), ignore_errors=True)
                self.take_base("checkpoint_2.pt")
                self.ok("--epochs", 3, "--resume", "auto", *args)
                self.assertEqual(names(self.path("checkpoints")), ["checkpoint_2.pt"])

    def test_resume_with_saving_off(self):
        self.take_base()
        self.go_on("--resume", "auto", "--checkpointer.checkpoint", "false", source="checkpoints/checkpoint_2.pt")
        self.assertEqual(names(self.path("checkpoints")), names(self.base))


class NewestFileTest(WithRun):
    base_epochs = 4

    def resumed_from(self, *args, folder="checkpoints"):
        finished = self.ok("--epochs", 4, "--resume", f"./{folder}", "--checkpointer.checkpoint", "false", *QUIET, *args)
        found = re.search(r"resumed from (\S+): (\d+) epochs", finished.err)
        self.assertIsNotNone(found, str(finished))
        return os.path.basename(found[1]), int(found[2]), finished

    def test_decoys_are_passed_over(self):
        self.take_base()
        decoys = ("checkpoint_model_99.pt", "checkpoint_suspect_99.pt", "my_checkpoint_99.pt", "checkpoint_extra_99.pt", "checkpoint2_99.pt", "checkpoint_model_model_99.pt", "checkpoint_99.tar",
                  "checkpoint_99.pt.bak", "checkpoint_99.ptx", "checkpoint_099.pt", "checkpoint_+99.pt", "checkpoint_-99.pt", "checkpoint_9 9.pt", "checkpoint_99 .pt", "checkpoint_9_9.pt", "checkpoint_.pt",
                  "checkpoint_99999999999999999999999.pt", ".checkpoint_99.pt.host.1.1.tmp", "99.pt", "CHECKPOINT_99.pt", "sub/checkpoint_99.pt", "99/checkpoint_99.pt", "checkpoint_98.pt/checkpoint_97.pt")
        for name in decoys:
            self.copy(self.base / "checkpoint_0.pt", f"checkpoints/{name}")
        self.assertEqual(self.resumed_from()[:2], ("checkpoint_3.pt", 4))

    def test_digits_in_the_names_of_folders_do_not_count(self):
        self.take_base(to="run_77/checkpoint_99.pt.d/12")
        self.assertEqual(self.resumed_from(folder="run_77/checkpoint_99.pt.d/12")[:2], ("checkpoint_3.pt", 4))

    def test_numbers_are_compared_as_numbers(self):
        self.take_base("checkpoint_2.pt")
        self.copy(self.base / "checkpoint_0.pt", "checkpoints/checkpoint_9.pt")
        self.copy(self.base / "checkpoint_1.pt", "checkpoints/checkpoint_10.pt")
        self.assertEqual(self.resumed_from()[:2], ("checkpoint_10.pt", 2))

    def test_another_prefix_has_its_own_newest(self):
        self.take_base()
        self.copy(self.base / "checkpoint_1.pt", "checkpoints/checkpoint_x_7.tar")
        self.assertEqual(self.resumed_from("--checkpointer.file_prefix", "checkpoint_x", "--checkpointer.file_ext", "tar")[:2], ("checkpoint_x_7.tar", 2))

    def test_of_an_epoch_file_and_a_step_file_the_later_state_is_taken(self):
        self.take_base("checkpoint_1.pt")
        self.copy(self.base / "checkpoint_2.pt", "checkpoints/checkpoint_step_1.pt")
        self.assertEqual(self.resumed_from()[:2], ("checkpoint_step_1.pt", 3))
        self.copy(self.base / "checkpoint_3.pt", "checkpoints/checkpoint_2.pt")
        self.assertEqual(self.resumed_from()[:2], ("checkpoint_2.pt", 4))

    def test_on_a_tie_the_epoch_file_is_taken(self):
        self.take_base("checkpoint_1.pt")
        self.copy(self.base / "checkpoint_1.pt", f"checkpoints/checkpoint_step_{2 * STEPS}.pt")
        self.assertEqual(self.resumed_from()[:2], ("checkpoint_1.pt", 2))

    def test_only_the_highest_number_of_each_form_is_looked_at(self):
        self.take_base()
        self.copy(self.base / "checkpoint_0.pt", "checkpoints/checkpoint_50.pt")
        self.assertEqual(self.resumed_from()[:2], ("checkpoint_50.pt", 1))

    def test_a_broken_newest_is_named_left_and_passed_over(self):
        whole = (self.base / "checkpoint_3.pt").read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 4
        for content in (b"", b"hello\n", whole[: len(whole) // 2], whole[:-1], bytes(flipped), (self.base / "checkpoint_model_3.pt").read_bytes()):
            with self.subTest(len(content)):
                shutil.rmtree(self.path("checkpoints"), ignore_errors=True)
                self.take_base()
                broken = self.put("checkpoints/checkpoint_7.pt", content)
                name, epochs, finished = self.resumed_from()
                self.assertEqual((name, epochs), ("checkpoint_3.pt", 4))
                self.assertRegex(finished.err, r"\[warning\] [^\n]*checkpoint_7\.pt")
                self.assertEqual(broken.read_bytes(), content)

    def test_none_whole_is_an_error_even_for_auto(self):
        self.put("checkpoints/checkpoint_0.pt", "x")
        self.put("checkpoints/checkpoint_1.pt", "y")
        for resume in ("auto", "must", "./checkpoints"):
            self.refused(3, "--epochs", 9, "--resume", resume, says=("checkpoints", "checkpoint_1.pt"))


class VerifyTest(WithRun):
    """What --checkpointer.verify makes of one flipped bit in a tensor."""

    def setUp(self):
        super().setUp()
        self.take_base()
        self.file = self.path("checkpoints/checkpoint_3.pt")
        content = bytearray(self.file.read_bytes())
        weight = load(self.file)["module_interface_state"]["net.0.weight"]
        content[content.index(bits(weight)) + 100] ^= 1
        self.broken = bytes(content)
        self.file.write_bytes(self.broken)

    def resumed(self, *flags):
        return self.ok("--epochs", 5, "--resume", "auto", *flags, *QUIET)

    def test_full_and_lazy_pass_over_it_with_a_warning(self):
        for verify in ((), ("--checkpointer.verify", "full"), ("--checkpointer.verify", "lazy")):
            self.file.write_bytes(self.broken)  # the run before wrote a whole one
            self.path("checkpoints/checkpoint_4.pt").unlink(missing_ok=True)
            resumed = self.resumed(*verify)
            self.assertRegex(resumed.err, r"\[warning\] a newer checkpoint is broken and was passed over: checkpoints/checkpoint_3\.pt: data/\d+: ")
            self.assertIn("resumed from checkpoints/checkpoint_2.pt", resumed.err)

    def test_a_broken_one_that_was_named_is_exit_3(self):
        for verify in ("full", "lazy"):
            self.refused(3, "--epochs", 5, "--resume", "checkpoints/checkpoint_3.pt", "--checkpointer.verify", verify, says="checkpoint_3.pt: data/")

    def test_off_does_not_look_and_says_so(self):
        resumed = self.resumed("--checkpointer.verify", "off")
        self.assertIn("checkpoint_3.pt: its tensors were not verified", resumed.err)
        self.assertIn("resumed from checkpoints/checkpoint_3.pt", resumed.err)

    def test_anything_else_is_refused(self):
        self.refused(2, "--checkpointer.verify", "ful", says=("--checkpointer.verify: must be one of full, lazy, off, got 'ful'", "did you mean full?"))


class ValidateOnlyTest(WithRun):
    def accuracy(self, finished):
        return re.search(r"val/accuracy=(\d\.\d{4}) val/loss=(\d+\.\d{4})", finished.last).groups()

    def test_the_weights_of_a_model_file(self):
        for args in (("--init_from", self.base / "checkpoint_model_3.pt"), ("--init_from", self.base / "checkpoint_3.pt"), ("--resume", self.base / "checkpoint_3.pt")):
            with self.subTest(args):
                finished = self.ok("--validate_only", "--epochs", 9, *args, "--writers", "stdout,jsonl")
                self.assertEqual(self.accuracy(finished), self.accuracy(self.base_run))
                resumed = args[0] == "--resume"
                self.assertDone(finished, 4 if resumed else 0, checkpoint=self.base / "checkpoint_3.pt" if resumed else None)
                self.assertNotIn("train/", finished.out + finished.err)
        self.assertEqual(names(self.dir), ["logs"])

    def test_any_batch_size_gives_the_same_accuracy(self):
        for size in (1, 7, 360, 1000):
            finished = self.ok("--validate_only", "--init_from", self.base / "checkpoint_model_3.pt", "--val_batch_size", size, "--micro_batch_limit", 50, "--checkpointer.checkpoint", "false")
            self.assertEqual(self.accuracy(finished), self.accuracy(self.base_run), size)


class InitFromTest(WithRun):
    def test_a_model_file_and_a_whole_state_start_at_epoch_0(self):
        for source in ("checkpoint_model_3.pt", "checkpoint_3.pt"):
            with self.subTest(source):
                folder = source.replace(".", "_")
                finished = self.ok("--epochs", 1, "--init_from", self.base / source, "--checkpointer.save_dir", folder, *QUIET)
                self.assertIn(f"took the initial weights from {self.base / source}", finished.err)
                self.assertDone(finished, 1)
                self.assertGreater(float(re.search(r"val/accuracy=(\S+)", finished.last)[1]), 0.93, "an epoch from nothing reaches 0.88")
        self.assertEqual(self.path("checkpoint_model_3_pt/checkpoint_model_0.pt").read_bytes(), self.path("checkpoint_3_pt/checkpoint_model_0.pt").read_bytes())

    def test_what_python_saved(self):
        import torch

        weights = load(self.base / "checkpoint_model_3.pt")
        torch.save(weights, self.path("python.pt"))
        torch.save({key: value.double() for key, value in reversed(weights.items())}, self.path("plain_dict.pt"))
        reference = self.ok("--init_from", self.base / "checkpoint_model_3.pt", "--checkpointer.save_dir", "reference", *QUIET)
        for file in ("python.pt", "plain_dict.pt"):
            finished = self.ok("--init_from", self.path(file), "--checkpointer.save_dir", file + ".d", *QUIET)
            self.assertEqual(finished.out.splitlines()[:-1], reference.out.splitlines()[:-1])
            self.assertEqual(differing(self.path("reference/checkpoint_model_0.pt"), self.path(file + ".d", "checkpoint_model_0.pt")), [])

    def test_it_is_not_used_when_a_run_is_resumed(self):
        self.take_base()
        finished = self.ok("--epochs", 5, "--resume", "auto", "--init_from", self.base / "checkpoint_model_3.pt", *QUIET)
        self.assertNotIn("took the initial weights", finished.err)
        self.assertIn("resumed from", finished.err)

    def test_another_model_is_refused(self):
        self.refused(3, "--init_from", self.base / "checkpoint_model_3.pt", "--module.hidden", 16,
                     says=("net.0.weight: shape [128, 64] in the file, [16, 64] in the model", "net.0.bias", "net.3.weight"))


class ExactnessTest(WithRun):
    base_epochs = 6

    def test_the_same_seed_gives_the_same_bits(self):
        self.ok("--epochs", 6, "--seed", 0, *QUIET)
        self.assertEqual(self.path("checkpoints/checkpoint_model_5.pt").read_bytes(), (self.base / "checkpoint_model_5.pt").read_bytes())
        for epoch in range(6):
            self.assertEqual(differing(self.path("checkpoints", f"checkpoint_{epoch}.pt"), self.base / f"checkpoint_{epoch}.pt"), [])

    def test_the_same_seed_with_all_threads(self):
        env = environment()
        del env["OMP_NUM_THREADS"]
        for folder in ("a", "b"):
            self.ok("--epochs", 2, "--checkpointer.save_dir", folder, *QUIET, env=env)
        self.assertEqual(self.path("a/checkpoint_model_1.pt").read_bytes(), self.path("b/checkpoint_model_1.pt").read_bytes())

    def test_another_seed_gives_another_model(self):
        self.ok("--epochs", 6, "--seed", 1, *QUIET)
        self.assertEqual(set(differing(self.path("checkpoints/checkpoint_model_5.pt"), self.base / "checkpoint_model_5.pt")), {".net.0.weight", ".net.0.bias", ".net.3.weight", ".net.3.bias"})

    def test_a_resumed_run_equals_the_straight_run(self):
        for stop in (1, 2, 5):
            with self.subTest(stop):
                folder = f"stop_{stop}"
                self.ok("--epochs", stop, "--checkpointer.save_dir", folder, *QUIET)
                finished = self.ok("--epochs", 6, "--resume", "auto", "--checkpointer.save_dir", folder, *QUIET)
                self.assertDone(finished, 6)
                self.assertEqual(self.path(folder, "checkpoint_model_5.pt").read_bytes(), (self.base / "checkpoint_model_5.pt").read_bytes())
                self.assertEqual(differing(self.path(folder, "checkpoint_5.pt"), self.base / "checkpoint_5.pt"), [])

    def test_dropout_and_augmentation_go_on_as_well(self):
        random = ("--module.dropout", 0.3, "--module.augment", "--epochs")
        self.ok(*random, 4, "--checkpointer.save_dir", "straight", *QUIET)
        self.ok(*random, 2, *QUIET)
        self.ok(*random, 4, "--resume", "auto", *QUIET)
        self.assertEqual(differing(self.path("checkpoints/checkpoint_3.pt"), self.path("straight/checkpoint_3.pt")), [])

    def test_epoch_by_epoch(self):
        for epochs in range(1, 7):
            finished = self.ok("--epochs", epochs, "--resume", "auto", *QUIET)
        self.assertEqual(finished.out.splitlines()[:-1], self.base_run.out.splitlines()[-3:-1])
        self.assertEqual(differing(self.path("checkpoints/checkpoint_5.pt"), self.base / "checkpoint_5.pt"), [])

    def test_a_resumed_run_of_another_seed_or_batch_size_is_another_run(self):
        self.take_base("checkpoint_4.pt")
        self.ok("--epochs", 6, "--resume", "auto", "--seed", 3, *QUIET)
        self.assertNotEqual(differing(self.path("checkpoints/checkpoint_model_5.pt"), self.base / "checkpoint_model_5.pt"), [])


if __name__ == "__main__":
    unittest.main()
