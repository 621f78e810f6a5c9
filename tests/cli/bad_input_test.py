"""Bad input gets one clear line and an exit code, never an abort: what is wrong, where, and what to do."""

import os
import random
import re
import subprocess
import unittest

from cli_support import BAD_PLUGINS, BUILD, DATA, DIGITS, STEPS, CliTest, WithRun, environment, names

QUIET = ("--progress", "off")


class BadFlagsTest(CliTest):
    def test_unknown_flags_with_the_nearest_name(self):
        for flag, nearest in (("--epoch", "--epochs"), ("--epohcs", "--epochs"), ("--checkpointer.perod", "--checkpointer.period"), ("--perod", "--checkpointer.period"), ("--module.hiden", "--module.hidden"),
                              ("--val_batchsize", "--val_batch_size"), ("--checkpointer.default.perod", "--checkpointer.default.period"), ("--init_form", "--init_from"), ("--EPOCHS", "")):
            with self.subTest(flag):
                self.refused(2, flag, 2, says=(f"unknown flag {flag}", f"did you mean {nearest}?" if nearest else ""))
        self.refused(2, "--epoch=2", says=("unknown flag --epoch", "did you mean --epochs?"))
        self.refused(2, "--qwertyuiop", 2, says="unknown flag --qwertyuiop")

    def test_prefixes_are_not_guessed(self):
        for flag in ("--epo", "--check", "--val", "--module"):
            self.refused(2, flag, 1, says=f"unknown flag {flag}")

    def test_wrong_types(self):
        for args, says in (
            (("--epochs", "two"), "--epochs: must be a whole number, got 'two'"),
            (("--epochs", "2.5"), "--epochs: must be a whole number, got '2.5'"),
            (("--epochs", "2x"), "--epochs: must be a whole number, got '2x'"),
            (("--epochs", "99999999999999999999"), "--epochs: must be a whole number"),
            (("--epochs", ""), "--epochs: must be a whole number, got ''"),
            (("--epochs=",), "--epochs: must be a whole number, got ''"),
            (("--module.lr", "fast"), "--module.lr: must be a number, got 'fast'"),
            (("--module.lr", "nan"), "--module.lr: must be a number, got nan"),
            (("--clip_grads", "maybe"), "--clip_grads: must be true or false, got 'maybe'"),
            (("--progress", "fast"), "--progress: must be one of auto, bar, plain, off, got 'fast'"),
            (("--log_level", "LOUD"), "--log_level: must be one of DEBUG, INFO, WARNING, ERROR, OFF, got 'LOUD'"),
            (("--resume", "sometimes"), "--resume: must be never, auto, must or a path with a '/', got 'sometimes'"),
        ):
            with self.subTest(args):
                self.refused(2, *args, says=says)

    def test_out_of_range(self):
        for args, says in (
            (("--checkpointer.period", 0), "--checkpointer.period: must be at least 1 (epochs), got 0"),
            (("--checkpointer.period", -1), "--checkpointer.period: must be at least 1 (epochs), got -1"),
            (("--checkpointer.period=-2",), "--checkpointer.period: must be at least 1 (epochs), got -2"),
            (("--epochs", -1), "--epochs: must be at least 0, got -1"),
            (("--train_batch_size", 0), "--train_batch_size: must be at least 1 (samples), got 0"),
            (("--train_batch_size", -3), "--train_batch_size: must be at least 1 (samples), got -3"),
            (("--val_batch_size", 0), "--val_batch_size: must be at least 1 (samples), got 0"),
            (("--micro_batch_limit", 0), "--micro_batch_limit: must be at least 1 (samples), got 0"),
            (("--max_steps", 0), "--max_steps: must be at least 1, got 0"),
            (("--max_train_steps_per_epoch", 0), "--max_train_steps_per_epoch: must be at least 1, got 0"),
            (("--max_val_steps_per_epoch", -5), "--max_val_steps_per_epoch: must be at least 1, got -5"),
            (("--max_grad_norm", 0), "--max_grad_norm: must be at least"),
            (("--seed", -1), "--seed: must be at least 0, got -1"),
            (("--module.hidden", 0), "--module.hidden: must be at least 1, got 0"),
            (("--module.dropout", 1), "--module.dropout: must be at most 0.999, got 1"),
        ):
            with self.subTest(args):
                self.refused(2, *args, says=says)

    def test_values_that_are_missing(self):
        self.refused(2, "--epochs", says="--epochs: a value is missing")
        self.refused(2, "--checkpointer.save_dir", "--epochs", 2, says="--checkpointer.save_dir: a value is missing")

    def test_stray_words(self):
        self.refused(2, "extra", says="unexpected argument 'extra'")
        self.refused(2, "--clip_grads", "true", "extra", says="unexpected argument 'extra'")
        self.refused(2, "-epochs", 2, says=("unexpected argument '-epochs'", "did you mean --epochs?"))
        self.refused(2, "--", "--epochs", 2, says="unexpected argument '--'")

    def test_a_flag_given_twice(self):
        self.refused(2, "--epochs", 1, "--epochs", 2, says="--epochs: given twice")
        self.refused(2, "--checkpointer.period", 1, "--checkpointer.default.period", 2, says="--checkpointer.default.period: given already as --checkpointer.period")

    def test_all_problems_are_told_at_once(self):
        self.refused(2, "--nosuch", "--epochs", "x", "--checkpointer.period", 0, says=("unknown flag --nosuch", "--epochs: must be a whole number", "--checkpointer.period: must be at least 1"))

    def test_devices(self):
        self.refused(2, "--device", "tpu", says="--device: must be auto, cpu, cuda or cuda:N, got 'tpu'")

    def test_cuda_without_its_plugin(self):
        for device in ("cuda", "cuda:0"):
            self.refused(2, "--device", device, says=(f"--device {device}", "give --device cpu"))

    def test_hostile_words_stay_on_one_line(self):
        for word in ("--a\nb", "--epochs=\n\n", "--\x1b[2J", "--epochs=" + "9" * 5000):
            with self.subTest(word[:20]):
                error = self.refused(2, word)
                self.assertNotIn("\x1b", error)

    def test_names_of_files(self):
        self.refused(2, "--checkpointer.file_prefix", "a_model", says=("checkpointer.file_prefix: 'a_model'", "must not end in '_model'"))
        self.refused(2, "--checkpointer.file_prefix", "a_step", says="must not end in '_step'")
        self.refused(2, "--checkpointer.file_prefix", "a_suspect", says="must not end in '_suspect'")
        self.refused(2, "--checkpointer.file_prefix", "a/b", says="must not hold a path separator")
        self.refused(2, "--checkpointer.file_prefix", "", says="checkpointer.file_prefix: '' must not be empty")
        self.refused(2, "--checkpointer.file_ext", ".pt", says="checkpointer.file_ext: '.pt' is given without the dot")
        self.refused(2, "--checkpointer.save_dir", "", says="checkpointer.save_dir: must not be empty")


class HelpTest(CliTest):
    FLAGS = ("epochs", "max_steps", "train_batch_size", "val_batch_size", "micro_batch_limit", "clip_grads", "max_grad_norm", "reset_optimizers_schedulers", "seed", "device", "backend", "checkpointer",
             "plugin_path", "writers", "resume", "init_from", "validate_only", "max_seconds", "early_stopping.metric", "early_stopping.patience", "early_stopping.mode", "early_stopping.min_delta",
             "log_steps", "writer.dir", "progress", "log_level", "config", "print_config", "help", "version", "module.hidden", "module.lr", "module.data",
             "module.optimizer", "module.momentum", "module.schedule", "module.workers",
             "checkpointer.checkpoint", "checkpointer.period", "checkpointer.save_dir", "checkpointer.model_state_save_dir", "checkpointer.load_dir", "checkpointer.load_filename", "checkpointer.file_prefix",
             "checkpointer.file_ext", "checkpointer.delete_existing_checkpoints", "checkpointer.keep_last", "checkpointer.log_level")

    def test_every_flag_stands_in_the_help(self):
        finished = self.ok("--help")
        self.assertEqual(finished.err, "")
        listed = re.findall(r"(?m)^  --(\S+) (bool|int|number|text|list)\b", finished.out)
        self.assertEqual(set(self.FLAGS) - {flag for flag, _ in listed}, set())
        self.assertEqual(len(listed), len(set(listed)))
        self.assertLessEqual(max(map(len, finished.out.splitlines())), 100)
        self.assertIn("[default 64; unit samples; at least 1]", re.sub(r"\s+", " ", finished.out), "the default of the application, not that of the library")
        self.assertEqual(names(self.dir), [])

    def test_a_plugin_stands_in_the_help(self):
        if not (BAD_PLUGINS / "libgood.so").exists():
            self.skipTest("bad_plugins are not built")
        finished = self.ok("--checkpointer", f"default,{BAD_PLUGINS}/libgood.so", "--help")
        for flag in ("--checkpointer.good.label text", "--checkpointer.good.limit int", "--checkpointer.good.period int", "--checkpointer.default.period int", "--checkpointer.default.save_dir text"):
            self.assertIn(flag, finished.out)
        self.assertNotIn("--checkpointer.period", finished.out)
        finished = self.ok("--help", "--checkpointer", "good", "--plugin_path", BAD_PLUGINS)
        for flag in ("--checkpointer.label text", "--checkpointer.limit int", "--checkpointer.period int"):
            self.assertIn(flag, finished.out)
        self.assertNotIn("save_dir", finished.out)

    def test_help_with_other_flags(self):
        self.assertIn("--epochs", self.ok("--epochs", 3, "--help").out)
        self.assertIn("--epochs", self.ok("--help", "--nosuch").out)
        self.refused(2, "--help", "--checkpointer", "nosuch", says="no plugin 'nosuch'")


class BadDataTest(CliTest):
    def lines(self):
        return DATA.read_text().splitlines(keepends=True)

    def bad(self, content, *says, name="bad.csv"):
        self.put(name, content)
        self.refused(2, "--module.data", name, says=says)

    def test_missing_or_no_file(self):
        self.refused(2, "--module.data", "nosuch.csv", says=("cannot read data file nosuch.csv", "--module.data"))
        self.path("folder").mkdir()
        self.refused(2, "--module.data", "folder", says=("cannot read data file folder", "--module.data"))
        self.put("file")
        self.refused(2, "--module.data", "file/inside", says="cannot read data file file/inside")

    def test_empty_or_too_short(self):
        self.bad("", "bad.csv: holds 0 digits; at least 10 are needed")
        self.bad("".join(self.lines()[:9]), "bad.csv: holds 9 digits; at least 10 are needed")

    def test_cut_in_the_middle_of_a_line(self):
        whole = DATA.read_bytes()
        chooser = random.Random(1)
        for _ in range(5):
            cut = chooser.randrange(2000, len(whole))
            while whole[cut - 1 : cut + 1].count(b"\n") or whole[: cut + 1].rpartition(b"\n")[2].count(b",") == 64:
                cut -= 1  # a cut that leaves whole lines only cannot be told
            line = whole[:cut].count(b"\n") + 1
            with self.subTest(cut=cut):
                self.bad(whole[:cut], f"bad.csv:{line}: column ", "of 65 is missing or not a number")

    def test_not_numeric(self):
        for line, column, word in ((1, 1, "x"), (7, 3, "five"), (1797, 65, "nine"), (100, 64, ""), (50, 10, "1e"), (51, 10, " 1")):
            lines = self.lines()
            fields = lines[line - 1].rstrip("\n").split(",")
            fields[column - 1] = word
            lines[line - 1] = ",".join(fields) + "\n"
            with self.subTest(word=word):
                self.bad("".join(lines), f"bad.csv:{line}: column ")

    def test_out_of_range(self):
        lines = self.lines()
        for content in ("17", "-1", "nan", "inf", "1e9"):
            fields = lines[8].split(",")
            fields[4] = content
            self.bad("".join(lines[:8] + [",".join(fields)] + lines[9:]), "bad.csv:9: column 5 ")

    def test_too_many_columns_blank_lines_and_bytes(self):
        lines = self.lines()
        self.bad("".join(lines[:2]) + lines[2].strip() + ",4\n" + "".join(lines[3:]), "bad.csv:3: more than 65 columns")
        self.bad("".join(lines) + "\n", "bad.csv:1798: column 1 of 65 is missing")
        self.bad(b"\x7fELF\0\xff\n" * 20, "bad.csv:1: column 1 of 65")
        self.bad(b"\0" * 100_000, "bad.csv:1: column 1 of 65")

    def test_line_ends_of_windows_are_fine(self):
        self.put("crlf.csv", DATA.read_bytes().replace(b"\n", b"\r\n"))
        plain = self.ok("--checkpointer.checkpoint", "false", *QUIET)
        self.assertEqual(self.ok("--module.data", "crlf.csv", "--checkpointer.checkpoint", "false", *QUIET).out, plain.out)


class LossTest(WithRun):
    base_epochs = 2

    def test_a_loss_that_is_not_finite_stops_at_that_step(self):
        for clip in ("true", "false"):
            with self.subTest(clip=clip):
                error = self.fails(1, "--module.lr", "1e30", "--clip_grads", clip, "--epochs", 3, "--checkpointer.save_dir", clip, *QUIET)
                self.assertRegex(error, r"^error: epoch 0, step 2: the loss that train_step returned is -?(nan|inf): a smaller learning rate may help")
                self.assertEqual(names(self.path(clip)), ["checkpoint_suspect_1.pt"], "what the step before had learned, under a name that nobody goes on from")
                self.fails(1, "--module.lr", "1e30", "--clip_grads", clip, "--epochs", 3, "--resume", "auto", "--checkpointer.save_dir", clip, *QUIET)

    def test_the_last_good_checkpoint_stays(self):
        # Python multiplies the weights of a whole state: a later step of the resumed run overflows.
        import torch

        self.take_base()
        whole = torch.load(self.path("checkpoints/checkpoint_1.pt"), weights_only=True)
        for group in whole["trainer_state"]["optimizers"][0]["param_groups"]:
            group["lr"] = 1e30
        torch.save(whole, self.path("checkpoints/checkpoint_1.pt"))
        before = {name: (self.path("checkpoints", name)).read_bytes() for name in names(self.path("checkpoints"))}
        error = self.fails(1, "--epochs", 5, "--resume", "auto", *QUIET)
        self.assertRegex(error, rf"^error: epoch 2, step {2 * STEPS + 2}: the loss that train_step returned is -?(nan|inf): a smaller learning rate may help")
        after = {name: (self.path("checkpoints", name)).read_bytes() for name in names(self.path("checkpoints"))}
        self.assertIsNotNone(after.pop(f"checkpoint_suspect_{2 * STEPS + 1}.pt", None))
        self.assertEqual(after, before)


class BadPartsTest(CliTest):
    def test_a_checkpointer_that_names_no_plugin(self):
        self.put("plugins/libone.so", "text")
        self.put("plugins/libtwo.so", "text")
        self.put("plugins/readme.txt", "text")
        error = self.refused(2, "--checkpointer", "nosuch", "--plugin_path", f"{self.dir}/plugins:/nowhere/at/all",
                             says=("no plugin 'nosuch'", f"there is no libnosuch.so in {self.dir}/plugins, /nowhere/at/all (no such folder), ", str(BUILD / "lib/marlin/plugins"), "one, ", "two", "--plugin_path", "built in: default"))
        self.assertNotIn("readme", error)
        self.refused(2, "--checkpointer", "tow", "--plugin_path", self.path("plugins"), says="did you mean two?")
        env = environment(MARLIN_PLUGIN_PATH=str(self.path("plugins")))
        self.refused(2, "--checkpointer", "nosuch", says=str(self.path("plugins")), env=env)

    def test_no_name_or_a_file_without_its_folder(self):
        self.refused(2, "--checkpointer", "", says=("--checkpointer: names none", "--checkpointer.checkpoint false"))
        self.put("libmine.so", "text")
        self.refused(2, "--checkpointer", "libmine.so", says=("no plugin 'libmine.so'", "./libmine.so"))
        self.refused(2, "--checkpointer", "./libnone.so", says=("libnone.so: no such file", "path from the working folder"))
        self.refused(2, "--checkpointer", "default,default", says="'default' is given twice")

    def test_files_that_are_no_libraries(self):
        self.put("libtext.so", "hello\n")
        self.refused(2, "--checkpointer", "./libtext.so", says=(f"plugin {self.dir}/libtext.so: not a shared library"))
        self.put("libempty.so")
        self.refused(2, "--checkpointer", "./libempty.so", says="libempty.so: the file is empty")
        self.path("libfolder.so").mkdir()
        self.refused(2, "--checkpointer", "./libfolder.so", says="libfolder.so: this is a folder")
        self.put("libcut.so", self.some_library().read_bytes()[:3000])
        self.refused(2, "--checkpointer", "./libcut.so", says="libcut.so: ")

    def some_library(self):
        from pathlib import Path

        with open("/proc/self/maps") as maps:
            return Path(next(line.split()[-1] for line in maps if re.search(r"/libc\.so\.6$", line)))

    def test_a_library_without_descriptor(self):
        library = self.copy(self.some_library(), "libforeign.so")
        self.refused(2, "--checkpointer", library, says=(f"plugin {library}: ", "it exports no marlin_plugin", "MARLIN_PLUGIN"))

    def test_unknown_backend_and_writer(self):
        self.refused(2, "--backend", "nosuch", says=("no plugin 'nosuch'", "libnosuch.so", str(BUILD / "lib/marlin/plugins"), "built in: sp"))
        self.refused(2, "--writers", "stdout,jsnol", says=("no plugin 'jsnol'", "built in: stdout, jsonl"))

    def test_a_folder_for_metrics_that_cannot_be_written(self):
        self.refused(2, "--writers", "jsonl", "--writer.dir", "/proc/nowhere", says="cannot make the folder of /proc/nowhere/metrics.jsonl: ")
        self.refused(2, "--writers", "jsonl", "--writer.dir", self.put("file"), says="is not a folder")


@unittest.skipUnless(BAD_PLUGINS.is_dir(), "bad_plugins are not built")
class BadPluginsTest(CliTest):
    def test_each_is_refused_in_one_line(self):
        for name, says in (
            ("no_descriptor", ("it exports no marlin_plugin", "MARLIN_PLUGIN")),
            ("undefined_symbol", ("cannot be loaded", "undefined symbol: marlin_test_function_that_is_nowhere", "build it again")),
            ("throws_own_type", ("make_checkpointer failed with an exception of type mine::Oops",)),
            ("returns_null", ("make_checkpointer returned null",)),
            ("throwing_options", ("options failed",)),
            ("wrong_name", ("says that it is 'right_name'", "rename the file")),
            ("later_abi", ("SDK ABI 5 (here 4)", "build it again")),
            ("other_torch", ("LibTorch 99.1", "build it again")),
            ("duplicate_option", ("its option table is not in order",)),
            ("two_kinds", ("it must set exactly one",)),
            ("good_writer", ("is a writer, not a checkpointer", "--writers")),
        ):
            with self.subTest(name):
                file = BAD_PLUGINS / f"lib{name}.so"
                self.refused(2, "--checkpointer", file, says=(str(file), *says))

    def test_one_that_throws_when_made(self):
        file = BAD_PLUGINS / "libthrows_when_made.so"
        self.refused(2, "--checkpointer", file, "--checkpointer.how", "standard", says=("make_checkpointer failed: two", "lines"))
        self.refused(2, "--checkpointer", file, "--checkpointer.how", "marlin", says="make_checkpointer failed: the store is closed")
        self.refused(2, "--checkpointer", file, "--checkpointer.how", "other", says="--checkpointer.how: must be one of standard, marlin, got 'other'")
        self.refused(2, "--checkpointer", file, "--checkpointer.hwo", "marlin", says="did you mean --checkpointer.how?")

    def test_one_that_cannot_save_ends_with_4(self):
        finished = self.run_digits("--checkpointer", BAD_PLUGINS / "libgood.so", "--epochs", 2, *QUIET)
        self.assertEqual(finished.code, 4, str(finished))
        self.assertIn("[error] checkpointer 'good' could not save the model of epoch 1", finished.err)
        self.assertDone(finished, 2)


class BadFoldersTest(CliTest):
    def test_save_dir_is_a_file_or_runs_through_one(self):
        self.put("file", "x")
        for option in ("save_dir", "model_state_save_dir"):
            for folder in ("file", "file/sub", "file/sub/deep", self.path("file/sub")):
                with self.subTest(option=option, folder=str(folder)):
                    args = ("--checkpointer.save_dir", ".") if option != "save_dir" else ()
                    self.refused(2, f"--checkpointer.{option}", folder, *args, says=(f"checkpointer.{option}: cannot write to '{folder}'", f"'{self.dir}/file' is not a folder"))

    def test_save_dir_where_nobody_can_write(self):
        for folder in ("/proc/nosuch", "/proc/nosuch/deep", "/proc"):
            with self.subTest(folder):
                self.refused(2, "--checkpointer.save_dir", folder, says=f"checkpointer.save_dir: cannot write to '{folder}': ")
        self.refused(2, "--checkpointer.save_dir", ".", "--checkpointer.model_state_save_dir", "/proc/nosuch", says="checkpointer.model_state_save_dir: cannot write to '/proc/nosuch'")

    def test_save_dir_without_permission(self):
        user = None
        if os.geteuid() == 0:  # who writes everywhere, so somebody else must try
            user = 65534
            self.dir.chmod(0o755)
            try:
                subprocess.run([DIGITS, "--version"], user=user, env=environment(), check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                self.skipTest("the program lies where no other user reaches it")
        self.path("locked").mkdir()
        self.path("locked").chmod(0o555)
        for folder in ("locked", "locked/sub"):
            self.refused(2, "--checkpointer.save_dir", folder, says=(f"checkpointer.save_dir: cannot write to '{folder}'", "ermission denied"), user=user)

    def test_a_folder_that_goes_away_while_training(self):
        # From the second epoch on nothing can be saved: training goes on, the end says so.
        self.ok("--epochs", 1, *QUIET)
        held = self.path("checkpoints/checkpoint_1.pt")
        held.mkdir()
        (held / "inside").write_text("a folder where the file should be")
        finished = self.run_digits("--epochs", 3, "--resume", "auto", *QUIET)
        self.assertEqual(finished.code, 0, str(finished))
        self.assertRegex(finished.err, r"\[error\] [^\n]*checkpoint_1\.pt")
        self.assertTrue(self.path("checkpoints/checkpoint_2.pt").is_file())

    def test_a_last_save_that_fails_ends_with_4(self):
        self.path("checkpoints/checkpoint_1.pt/inside").mkdir(parents=True)
        finished = self.run_digits("--epochs", 2, *QUIET)
        self.assertEqual(finished.code, 4, str(finished))
        self.assertDone(finished, 2)
        self.assertEqual([n for n in names(self.path("checkpoints")) if n.startswith(".")], [])


class BadResumeTest(WithRun):
    base_epochs = 2

    def test_missing(self):
        self.refused(3, "--resume", "./nosuch.pt", says="./nosuch.pt: open: No such file or directory")
        self.refused(3, "--resume", "must", says=("no checkpoint to resume from", "checkpoint_0.pt in checkpoints", "--resume auto"))

    def test_empty_text_or_something_else(self):
        self.put("empty.pt")
        self.refused(3, "--resume", "./empty.pt", says="./empty.pt: ")
        self.put("text.pt", "hello\n")
        self.refused(3, "--resume", "./text.pt", says=("./text.pt: ", "not a checkpoint"))
        self.refused(3, "--resume", DATA, says=(f"{DATA}: ", "not a checkpoint"))
        self.put("zeros.pt", b"\0" * 100_000)
        self.refused(3, "--resume", "./zeros.pt", says="./zeros.pt: ")

    def test_truncated(self):
        whole = (self.base / "checkpoint_1.pt").read_bytes()
        for size in (1, 3, 64, 1000, len(whole) // 3, len(whole) // 2, len(whole) - 2000, len(whole) - 100, len(whole) - 22, len(whole) - 1):
            with self.subTest(size=size, of=len(whole)):
                self.put("cut.pt", whole[:size])
                self.refused(3, "--epochs", 3, "--resume", "./cut.pt", says=("./cut.pt: ", "truncated"))

    def test_one_flipped_bit(self):
        # What is not covered by a checksum (names and times of ZIP entries) may be read, but then nothing may be different.
        whole = (self.base / "checkpoint_1.pt").read_bytes()
        reference = self.ok("--epochs", 3, "--resume", self.base / "checkpoint_1.pt", "--checkpointer.save_dir", "reference", *QUIET)
        self.assertDone(reference, 3)
        chooser, refused = random.Random(20), 0
        places = [chooser.randrange(len(whole)) for _ in range(12)] + [len(whole) - 1 - chooser.randrange(4000) for _ in range(6)]
        for place in places:
            flipped = bytearray(whole)
            flipped[place] ^= 1 << chooser.randrange(8)
            self.put("flipped.pt", bytes(flipped))
            with self.subTest(place=place, of=len(whole)):
                folder = f"at_{place}"
                finished = self.run_digits("--epochs", 3, "--resume", "./flipped.pt", "--checkpointer.save_dir", folder, *QUIET)
                if finished.code == 0:
                    self.assertEqual(self.path(folder, "checkpoint_model_2.pt").read_bytes(), self.path("reference/checkpoint_model_2.pt").read_bytes())
                    continue
                refused += 1
                self.assertEqual(finished.code, 3, str(finished))
                self.assertRegex(finished.err, r"\Aerror: \./flipped\.pt: [^\n]+\n\Z")
                self.assertFalse(self.path(folder).exists())
        self.assertGreaterEqual(refused, 12)

    def test_of_another_model(self):
        error = self.refused(3, "--epochs", 3, "--module.hidden", 32, "--resume", self.base / "checkpoint_1.pt", says=(
            f"{self.base}/checkpoint_1.pt does not fit this run", "net.0.weight: shape [128, 64] in the file, [32, 64] in the model", "net.0.bias: shape [128] in the file, [32] in the model",
            "net.3.weight: shape [10, 128] in the file, [10, 32] in the model", "optimizer 0", "Nothing was changed"))
        self.assertNotIn("net.3.bias", error, "it is equal")

    def test_a_model_file_is_no_whole_state(self):
        self.refused(3, "--epochs", 3, "--resume", self.base / "checkpoint_model_1.pt", says=("checkpoint_model_1.pt: ", "--init_from"))

    def test_what_python_can_write_and_digits_cannot_take(self):
        import torch

        torch.save({"a": torch.zeros(2)}, self.path("other.pt"))
        self.refused(3, "--resume", "./other.pt", says=("./other.pt: ", "module_interface_state"))
        torch.save(torch.nn.Linear(2, 2), self.path("module.pt"))
        self.refused(3, "--resume", "./module.pt", says=("./module.pt: ", "torch.nn.modules.linear.Linear"))
        torch.save({"a": torch.zeros(2)}, self.path("old.pt"), _use_new_zipfile_serialization=False)
        self.refused(3, "--resume", "./old.pt", says=("./old.pt: ", "save it again"))
        self.refused(3, "--init_from", "./old.pt", says=("./old.pt: ", "save it again"))

    def test_initial_weights(self):
        self.refused(3, "--init_from", "nosuch.pt", says="nosuch.pt: open: No such file")
        self.put("text.pt", "hello\n")
        self.refused(3, "--init_from", "text.pt", says="text.pt: ")


class BadConfigTest(CliTest):
    def bad(self, content, *says):
        self.put("bad.ini", content)
        self.refused(2, "--config", "bad.ini", says=says)

    def test_missing_or_no_file(self):
        self.refused(2, "--config", "nosuch.ini", says="--config: cannot read nosuch.ini: No such file or directory")
        self.path("folder").mkdir()
        self.refused(2, "--config", "folder", says="--config: cannot read folder: it is a folder")
        self.refused(2, "--config", "", says="--config: must name a file")
        self.refused(2, "--config", says="--config: a value is missing")

    def test_broken_lines(self):
        self.bad("epochs = 1\nepochs 3\n", "bad.ini:2: expected name = value, got 'epochs 3'")
        self.bad("# c\n\n[checkpointer\nperiod = 2\n", "bad.ini:3: a section needs a closing bracket")
        self.bad("[checkpointer]\nsave_dir = \"open\n", "bad.ini:2: the closing quote is missing")
        self.bad("= 3\n", "bad.ini:1: not a name: ''")
        self.bad(b"\x7fELF\x02\x01\0\0\n", "bad.ini:1: ")

    def test_names_and_values(self):
        self.bad("[checkpointer]\nperod = 2\n", "bad.ini:2: unknown name checkpointer.perod", "did you mean checkpointer.period?")
        self.bad("epochs = x\n[checkpointer]\nperiod = 0\n", "bad.ini:1: epochs: must be a whole number, got 'x'", "bad.ini:3: checkpointer.period: must be at least 1")
        self.bad("epochs = 1\nepochs = 2\n", "bad.ini:2: epochs: given twice")
        self.bad("config = other.ini\n", "bad.ini:1: config cannot stand in a file")
        self.bad("checkpointer = nosuch\n", "no plugin 'nosuch'")


if __name__ == "__main__":
    unittest.main()
