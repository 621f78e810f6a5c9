"""check_includes.py finds one breach of each kind, and names its line."""
import subprocess
import sys
import tempfile
from pathlib import Path

HEADER = "#pragma once\n"
TREE = {
    "sdk/include/marlin/sdk/a.h": HEADER,
    "sdk/include/marlin/sdk/up.h": HEADER + '#include "marlin/checkpointers/b.h"\n',
    "sdk/include/marlin/sdk/dist.h": HEADER + "#include <torch/csrc/distributed/c10d/Store.hpp>\n",
    "sdk/include/marlin/sdk/heavy.h": HEADER + "#include <torch/torch.h>\n",
    "sdk/include/marlin/sdk/log.h": HEADER + "#  include <spdlog/spdlog.h>\n",
    "sdk/include/marlin/sdk/private.h": HEADER + '#include "hidden.h"\n',
    "sdk/include/marlin/sdk/twice.h": "int x;\n",
    "sdk/src/hidden.h": HEADER,
    "sdk/src/fine.cpp": '#include "hidden.h"\n#include "marlin/sdk/a.h"\n#include <boost/dll.hpp>\n',
    "sdk/src/typo.cpp": '#include "marlin/sdk/aa.h"\n',
    "sdk/testing/include/marlin/testing/t.h": HEADER + '#include "marlin/sdk/a.h"\n',
    "sdk/testing/src/t.cpp": '#include "marlin/testing/t.h"\n#include "marlin/checkpointers/b.h"\n',
    "sdk/src/tested.cpp": '#include "marlin/testing/t.h"\n',
    "checkpointers/tools/common/include/marlin/tools/w.h": HEADER,
    "checkpointers/src/worded.cpp": '#include "marlin/tools/w.h"\n',
    "core/tools/fine.cpp": '#include "marlin/tools/w.h"\n#include "marlin/testing/t.h"\n',
    "checkpointers/include/marlin/checkpointers/b.h": HEADER + '#include "marlin/sdk/a.h"\n',
    "checkpointers/src/up.cpp": '#include "marlin/core/c.h"\n',
    "checkpointers/src/across.cpp": '#include "../../sdk/src/hidden.h"\n',
    "core/include/marlin/core/c.h": HEADER + '#include "marlin/checkpointers/b.h"\n',
    "core/include/marlin/marlin.h": HEADER,
    "plugins/p/plugin.cpp": '#include <marlin/core/c.h>\nMARLIN_PLUGIN(.make_writer = &make)\n',
    "plugins/q/plugin.cpp": '#include <marlin/core/c.h>\nMARLIN_PLUGIN(.make_backend = &make)\n',
    "examples/e/e.cpp": '#include <marlin/marlin.h>\n#include "../f/f.h"\n',
    "examples/f/f.h": HEADER,
    "tests/CMakeLists.txt": "foreach(area sdk core)\n  file(GLOB sources unit/${area}/*_test.cpp)\nendforeach()\n# unit/other/lost_test.cpp\n",
    "tests/unit/sdk/a_test.cpp": "",
    "tests/unit/other/lost_test.cpp": '#include "../../../examples/f/f.h"\n',
}
EXPECTED = [
    'checkpointers/src/across.cpp:1: #include "../../sdk/src/hidden.h": is not in checkpointers',
    'checkpointers/src/up.cpp:1: #include "marlin/core/c.h": checkpointers may include sdk and checkpointers only',
    'examples/e/e.cpp:2: #include "../f/f.h": is not in examples/e',
    "plugins/p/plugin.cpp:1: #include <marlin/core/c.h>: a plugin of checkpointers or writers may include sdk and checkpointers only",
    "sdk/include/marlin/sdk/dist.h:2: #include <torch/csrc/distributed/c10d/Store.hpp>: c10d stays out of the sdk's headers",
    "sdk/include/marlin/sdk/heavy.h:2: #include <torch/torch.h>: a public header includes the LibTorch headers that it uses, not all of them",
    "sdk/include/marlin/sdk/log.h:2: #  include <spdlog/spdlog.h>: users of the package need not have spdlog",
    'sdk/include/marlin/sdk/private.h:2: #include "hidden.h": a public header includes public headers only, by their whole name (marlin/PART/...)',
    "sdk/include/marlin/sdk/twice.h:1: int x;: a header begins with #pragma once",
    'sdk/include/marlin/sdk/up.h:2: #include "marlin/checkpointers/b.h": sdk may include sdk only',
    'sdk/src/tested.cpp:1: #include "marlin/testing/t.h": sdk may include sdk only',
    'sdk/testing/src/t.cpp:2: #include "marlin/checkpointers/b.h": sdk may include sdk only',
    'checkpointers/src/worded.cpp:1: #include "marlin/tools/w.h": checkpointers may include sdk and checkpointers only',
    'sdk/src/typo.cpp:1: #include "marlin/sdk/aa.h": sdk has no such public header',
    'tests/unit/other/lost_test.cpp:1: #include "../../../examples/f/f.h": examples are included by nobody',
    "tests/unit/other/lost_test.cpp:1: no CMakeLists.txt below tests/ names it, so it is never run",
]

with tempfile.TemporaryDirectory() as root:
    for name, text in TREE.items():
        file = Path(root, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    result = subprocess.run([sys.executable, Path(__file__).with_name("check_includes.py"), root], text=True, stdout=subprocess.PIPE)
found = sorted(result.stdout.splitlines())
if found != sorted(EXPECTED) or result.returncode != 1:
    sys.exit("missed:\n" + "\n".join(sorted(set(EXPECTED) - set(found))) + "\nwrong:\n" + "\n".join(sorted(set(found) - set(EXPECTED))))
