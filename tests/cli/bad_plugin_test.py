"""No plugin's mistake takes the program down without a line that names plugin, file and call."""

import re

from cli_support import BAD_PLUGINS, CliTest, names

DEFECT = "; that is a defect of the plugin, and checkpoints written before are untouched"


def title(name):
    return f"plugin '{name}' ({BAD_PLUGINS}/lib{name}.so)"


class BadPluginTest(CliTest):
    def digits(self, *arguments, code, epochs=2):
        result = self.run_digits("--plugin_path", BAD_PLUGINS, "--epochs", epochs, "--progress", "off", "--log_level", "WARNING", *arguments)
        self.assertEqual(result.code, code, result)
        return result

    def ends(self, line, *arguments, code):
        """The one line on standard error, exactly."""
        result = self.digits(*arguments, code=code)
        self.assertEqual(result.err, f"error: {line}\n", result)


class PluginEndsProcessTest(BadPluginTest):
    def check(self, how, says, call="save", code=1):
        made = "make_checkpointer" if call == "make" else call
        with self.subTest(how=how, call=call):
            self.ends(f"{title('ends_process')}: {says.format(call=made)}", "--checkpointer", "ends_process", "--checkpointer.how", how, "--checkpointer.call", call, code=code)

    def test_in_a_call(self):
        self.check("exit", "{call} called exit(3); a plugin throws an exception instead")
        self.check("quick_exit", "{call} called quick_exit(); a plugin throws an exception instead")
        self.check("null", "{call} ended with SIGSEGV at address 0x0" + DEFECT)
        self.check("abort", "{call} ended with SIGABRT" + DEFECT)
        self.check("negative", "{call} called exit(-1); a plugin throws an exception instead")
        self.check("pthread_exit", "{call} ended with SIGABRT" + DEFECT)

    def test_in_a_thread_of_its_own(self):
        self.check("thread_null", "a thread of its own ended with SIGSEGV at address 0x0" + DEFECT)
        self.check("thread_abort", "a thread of its own ended with SIGABRT" + DEFECT)
        self.check("thread_throw", "a thread of its own ended by an exception of type int, which nothing can catch there" + DEFECT)

    def test_in_an_epoch_of_a_backend(self):
        for how, says in (("exit", "train called exit(0); a plugin throws an exception instead"), ("null", "train ended with SIGSEGV at address 0x0" + DEFECT)):
            self.ends(f"{title('throwing_backend')}: {says}", "--backend", "throwing_backend", "--backend.call", "train", "--backend.how", how, code=1)

    def test_while_it_is_made(self):
        self.check("exit", "{call} called exit(3); a plugin throws an exception instead", call="make", code=2)
        self.check("null", "{call} ended with SIGSEGV at address 0x0" + DEFECT, call="make", code=2)

    def test_what_was_saved_before_stays(self):
        self.digits("--checkpointer", "default,ends_process", "--checkpointer.ends_process.how", "null", "--checkpointer.ends_process.call", "save_model", code=1)
        self.assertIn("checkpoint_1.pt", names(self.dir / "checkpoints"))
        result = self.digits("--resume", "auto", code=0, epochs=3)
        self.assertRegex(result.last, "^done epochs=3 global_step=69 ")


class PluginThrowsTest(BadPluginTest):
    OOPS = "failed with an exception of type mine::Oops, which is no std::exception"

    def test_before_the_first_epoch(self):
        for call in ("open", "wants_load"):
            self.ends(f"{title('throws_in_calls')}: {call} {self.OOPS}", "--checkpointer", "throws_in_calls", "--checkpointer.call", call, code=2)
        self.ends(f"{title('throwing_writer')}: open {self.OOPS}", "--writers", "throwing_writer", "--writer.throwing_writer.call", "open", code=2)
        self.ends(f"{title('throwing_backend')}: init {self.OOPS}", "--backend", "throwing_backend", "--backend.call", "init", code=2)

    def test_in_an_epoch_of_a_backend(self):
        self.ends(f"{title('throwing_backend')}: train {self.OOPS} (in epoch 0, after 0 steps)", "--backend", "throwing_backend", "--backend.call", "train", code=1)

    def test_a_save_that_throws_does_not_end_training(self):
        for call in ("save", "save_model", "close"):
            result = self.digits("--checkpointer", "throws_in_calls", "--checkpointer.call", call, code=4)
            self.assertIn(f"{title('throws_in_calls')}: {call} {self.OOPS}\n", result.err)
            self.assertRegex(result.err, r"\[error\] a last save failed, as said above: what was trained last is not on disk, or not all of it; exit code 4\n\Z")
            self.assertRegex(result.last, "^done epochs=2 ")

    def test_a_writer_that_throws_does_not_end_training(self):
        for call in ("write", "flush"):
            result = self.digits("--checkpointer.delete_existing_checkpoints", "--writers", "stdout,throwing_writer", "--writer.throwing_writer.call", call, code=0)
            self.assertIn(f"{title('throwing_writer')}: {call} {self.OOPS}\n", result.err)
            self.assertEqual(len(re.findall("^epoch=", result.out, re.M)), 4, result)


class PluginTakesLongTest(BadPluginTest):
    def test_a_save_of_ten_seconds_is_warned_of_and_training_ends_well(self):
        result = self.digits("--checkpointer", "takes_long", "--checkpointer.period", 100, code=0, epochs=1)
        self.assertIn(f"[warning] {title('takes_long')}: save has taken 5 s and goes on\n", result.err)

    def test_the_limit_is_a_flag(self):
        result = self.digits("--checkpointer", "takes_long", "--checkpointer.period", 100, "--checkpointer.seconds", 1, "--plugin_slow_seconds", 0.25, code=0, epochs=1)
        self.assertIn(f"[warning] {title('takes_long')}: save has taken 0.25 s and goes on\n", result.err)
        self.assertIn(f"[warning] {title('takes_long')}: save has taken 0.5 s and goes on\n", result.err)


class RefusedPluginTest(BadPluginTest):
    def test_two_of_a_name(self):
        (self.dir / "other").mkdir()
        (self.dir / "other" / "libgood.so").write_bytes((BAD_PLUGINS / "libgood.so").read_bytes())
        self.ends(f"plugin {self.dir}/other/libgood.so: there is a checkpointer 'good' already, from {BAD_PLUGINS}/libgood.so; "
                  "two of one name cannot be told apart: rename one of them", "--checkpointer", "good,./other/libgood.so", code=2)

    def test_a_second_libtorch_behind_a_library_of_the_plugins(self):
        result = self.digits("--checkpointer", "torch_below", code=2)
        self.assertRegex(result.err, rf"\Aerror: {re.escape(title('torch_below'))}: with it a second LibTorch came into the process \(\S*/libc10\.so and "
                         rf"{re.escape(str(BAD_PLUGINS))}/linked/libc10-0123abcd\.so\), and two of them cannot share tensors; "
                         r"link it and the libraries that it uses with one LibTorch\n\Z")
