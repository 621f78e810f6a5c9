"""GPUs: what the plugin `cuda` says where there is none, and, where there are some, that training on them works.

Those that need a GPU are skipped by name where there is none. All of it: python -m unittest cuda_test.
"""

import ctypes
import json
import re
import shutil
import subprocess
import unittest

from cli_support import BUILD, differing, environment, load
from ddp_support import QUIET, DdpSupport
from stop_support import HARD

PLUGIN = BUILD / "lib/marlin/plugins/libcuda.so"


def num_gpus():
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


NUM_GPUS = num_gpus()


class CudaPluginTest(DdpSupport):
    def libraries(self, *args):
        """The libraries that a run has loaded, and how it ended."""
        finished = self.run_digits(*args, *QUIET, env=environment(LD_DEBUG="files", LD_DEBUG_OUTPUT=str(self.path("loader"))))
        said = "".join(file.read_text(errors="replace") for file in self.dir.glob("loader*"))
        return set(re.findall(r"calling init: (?:\S*/)?([^/\s]+)", said)), finished

    def test_its_facts_are_read_without_loading_it(self):
        facts = json.loads(subprocess.run([BUILD / "bin/marlin-plugin", "info", PLUGIN, "--json"], capture_output=True, check=True).stdout)
        self.assertEqual((facts["name"], facts["kind"]), ("cuda", "device"))
        self.assertRegex(facts["cuda"], r"^\d\d\.\d$")

    def test_it_keeps_its_promises(self):
        checked = subprocess.run([BUILD / "bin/marlin-plugin", "check", PLUGIN], capture_output=True, text=True)
        self.assertEqual(checked.returncode, 0, checked)
        self.assertIn("counts devices", checked.stdout)

    def test_processes_on_the_cpu_never_load_cuda(self):
        for words in (("--device", "cpu"), ("--nproc", 2, "--backend", "ddp", "--device", "cpu")):
            with self.subTest(words=words):
                libraries, finished = self.libraries("--epochs", 1, "--checkpointer.delete_existing_checkpoints", *words)
                self.assertEqual(finished.code, 0, str(finished))
                self.assertIn("libtorch_cpu.so", libraries)
                self.assertEqual([name for name in libraries if re.match(r"lib(torch_|c10_)?cuda\b", name)], [])

    def test_what_it_is_asked_for_is_loaded(self):
        libraries, _ = self.libraries("--epochs", 1, "--device", "cuda")
        self.assertLessEqual({"libcuda.so", "libtorch_cuda.so"}, libraries)

    def test_flags_are_told_without_it(self):
        for flag in ("--help", "--version", "--print_config"):
            libraries, finished = self.libraries("--device", "cuda", flag)
            self.assertEqual(finished.code, 0, str(finished))
            self.assertNotIn("libtorch_cuda.so", libraries)

    @unittest.skipIf(NUM_GPUS > 0, "there is a GPU")
    def test_without_a_gpu_it_is_one_clear_line(self):
        for device in ("cuda", "cuda:0"):
            for backend in ("sp", "sp-amp", "ddp"):
                with self.subTest(device=device, backend=backend):
                    self.refused(2, "--device", device, "--backend", backend, says=(f"--device {device}: ", "no GPU can be used: ", "give --device cpu"))
        self.refused(2, "--device", "cuda", "--nproc", 2, "--backend", "ddp", says=("--device cuda: ", "no GPU can be used: "))

    @unittest.skipIf(NUM_GPUS > 0, "there is a GPU")
    def test_auto_is_the_cpu_where_there_is_no_gpu(self):
        libraries, finished = self.libraries("--epochs", 1, "--device", "auto")
        self.assertEqual(finished.code, 0, str(finished))
        self.assertNotIn("libtorch_cuda.so", libraries)

    def test_a_plugin_that_is_not_there(self):
        folder = self.path("libraries")  # libmarlin looks for plugins beside itself
        folder.mkdir()
        for library in (BUILD / "lib").glob("*.so"):
            shutil.copyfile(library, folder / library.name)
        self.refused(2, "--device", "cuda", says=("--device cuda: no plugin 'cuda': there is no libcuda.so in ",), env=environment(LD_LIBRARY_PATH=str(folder)))


@unittest.skipIf(NUM_GPUS == 0, "needs an NVIDIA GPU")
class CudaTrainingTest(DdpSupport):
    def accuracy(self, finished):
        return float(re.search(r"val/accuracy=([\d.]+)", finished.last)[1])

    def test_it_learns_as_the_cpu_does(self):
        self.ok("--epochs", 12, "--device", "cpu", *QUIET, cwd=self.put("cpu/x").parent)
        finished = self.ok("--epochs", 12, "--device", "cuda", *QUIET, cwd=self.put("gpu/x").parent)
        self.assertGreater(self.accuracy(finished), 0.95)
        self.assertClose(self.path("gpu/checkpoints/checkpoint_model_0.pt"), self.path("cpu/checkpoints/checkpoint_model_0.pt"), 1e-3)

    def test_checkpoints_open_where_there_is_no_gpu(self):
        self.ok("--epochs", 1, "--device", "cuda", *QUIET)
        for tensor in load(self.path("checkpoints/checkpoint_model_0.pt")).values():
            self.assertEqual(tensor.device.type, "cpu")
        self.assertDone(self.ok("--epochs", 2, "--device", "cpu", "--resume", "auto", *QUIET), 2)

    def test_mixed_precision_learns_in_both_types(self):
        for dtype in ("float16", "bfloat16"):
            with self.subTest(dtype=dtype):
                finished = self.ok("--epochs", 12, "--device", "cuda", "--backend", "sp-amp", "--backend.dtype", dtype, *QUIET, cwd=self.put(f"{dtype}/x").parent)
                self.assertGreater(self.accuracy(finished), 0.95)
        state = load(self.path("float16/checkpoints/checkpoint_11.pt"))["trainer_backend_state"]
        self.assertIn("scale", state["scaler"])

    def test_a_resumed_run_is_the_straight_run_bit_for_bit(self):
        straight, resumed = self.put("straight/x").parent, self.put("resumed/x").parent
        for saves in ((), ("--checkpointer.async", "true")):
            with self.subTest(saves=saves):
                self.ok(*HARD, "--device", "cuda", *saves, "--checkpointer.delete_existing_checkpoints", cwd=straight)
                self.copy(straight / "checkpoints/checkpoint_0.pt", resumed / "checkpoints/checkpoint_0.pt")
                self.ok(*HARD, "--device", "cuda", *saves, "--resume", "auto", cwd=resumed)
                self.assertEqual(differing(straight / "checkpoints/checkpoint_2.pt", resumed / "checkpoints/checkpoint_2.pt"), [])

    def test_a_gpu_that_is_not_there(self):
        self.refused(2, "--device", f"cuda:{NUM_GPUS}", says=(f"--device cuda:{NUM_GPUS}: ", "there is no such GPU"))

    def test_auto_takes_the_gpu(self):
        self.ok("--epochs", 1, "--device", "auto", *QUIET)
        self.assertIn("cuda", load(self.path("checkpoints/checkpoint_0.pt"))["trainer_state"]["generators"])

    def test_more_processes_than_gpus(self):
        self.refused(2, "--device", "cuda", "--backend", "ddp", "--nproc", NUM_GPUS + 1, says="there are not enough GPUs")


@unittest.skipIf(NUM_GPUS == 0, "needs an NVIDIA GPU")
class NcclTest(DdpSupport):
    """With one GPU, NCCL connects one rank; with more, that many."""

    RUN = ("--backend", "ddp", "--device", "cuda")

    def test_ranks_on_gpus_make_the_run_of_the_cpu(self):
        self.ok("--epochs", 3, "--device", "cpu", *QUIET, cwd=self.put("cpu/x").parent)
        self.ok("--epochs", 3, *self.RUN, "--nproc", max(1, NUM_GPUS), "--backend.check_every", 1, *QUIET, cwd=self.put("gpu/x").parent)
        self.assertClose(self.path("gpu/checkpoints/checkpoint_model_2.pt"), self.path("cpu/checkpoints/checkpoint_model_2.pt"), 1e-2)

    @unittest.skipIf(NUM_GPUS < 2, "needs two GPUs")
    def test_a_resumed_run_is_the_straight_run_bit_for_bit(self):
        straight, resumed = self.put("straight/x").parent, self.put("resumed/x").parent
        self.ok("--nproc", 2, *self.RUN, *HARD, cwd=straight)
        self.copy(straight / "checkpoints/checkpoint_0.pt", resumed / "checkpoints/checkpoint_0.pt")
        self.ok("--nproc", 2, *self.RUN, *HARD, "--resume", "auto", cwd=resumed)
        self.assertEqual(differing(straight / "checkpoints/checkpoint_2.pt", resumed / "checkpoints/checkpoint_2.pt"), [])


if __name__ == "__main__":
    unittest.main()
