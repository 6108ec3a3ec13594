"""Real message types from definitions that a test writes, for packages that are not on the Python registry.

rosidl's own generators write the C and Python code, as a `colcon build` would have them do, and gcc builds it. The
folder that `build` returns goes on PYTHONPATH; nothing else is needed, the libraries find each other.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

FAST, INTROSPECTION = "rosidl_typesupport_fastrtps_c", "rosidl_typesupport_introspection_c"
GENERATORS = {  # in order: how each is called on its file of arguments, a
    "rosidl_generator_type_description": "from rosidl_generator_type_description import *; generate_type_hash(a)",
    "rosidl_generator_c": "from rosidl_generator_c import *; generate_c(a)",
    FAST: f"from {FAST} import *; generate_typesupport_fastrtps_c(a)",
    INTROSPECTION: f"from {INTROSPECTION} import *; generate_c(a)",
    "rosidl_typesupport_c": f"from rosidl_typesupport_c import *; generate_c(a, [{FAST!r}, {INTROSPECTION!r}])",
    "rosidl_generator_py": "from rosidl_generator_py import *; generate_py(a, ['rosidl_typesupport_c'])",
}
BASE = ("service_msgs", "builtin_interfaces")  # what every service needs


def build(package, definitions, cache, depends=()):
    """Build `package` from definitions by path ("msg/Name.msg": text); returns the folder that holds it.

    depends: packages of messages that the definitions name. Built once: the folder in `cache` is named by a hash.
    """
    made_of = [package, sorted(definitions.items()), depends, sys.version, np.__version__, Path(__file__).read_text()]
    target = Path(cache) / hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]
    if not (target / package).is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _generate(package, definitions, Path(scratch), (*BASE, *depends))
            made = _compile(package, Path(scratch), (*BASE, *depends))
            try:
                os.replace(made, target)
            except OSError:
                if not (target / package).is_dir():  # else another process was faster
                    raise
    return target


def missing():
    """What `build` needs and is not here, or ""."""
    tools = [tool for tool in ("gcc", "g++") if not shutil.which(tool)]
    headers = [] if (Path(sysconfig.get_path("include")) / "Python.h").is_file() else ["Python.h"]
    return ", ".join([*tools, *headers, *(name for name in GENERATORS if not _shares(name))])


def _shares(package):
    prefixes = os.environ.get("AMENT_PREFIX_PATH") or sys.prefix
    return [path for prefix in prefixes.split(os.pathsep) if (path := Path(prefix) / "share" / package).is_dir()]


def _share(package):
    """The share folder of an installed package: of a sourced ROS 2, or of this environment."""
    found = _shares(package)
    assert found, f"{package} is not installed"
    return found[0]


def _run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-2000:]}{done.stderr[-4000:]}"


def _generate(package, definitions, scratch, depends):
    """Sources of each generator in scratch/<generator>/<package>."""
    source = scratch / "source"
    for path, text in definitions.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(text)
    shares = {name: _share(name) for name in depends}
    idls = [str(Path(path).with_suffix(".idl")) for path in definitions]
    described = scratch / "rosidl_generator_type_description" / package
    common = {
        "package_name": package,
        "idl_tuples": [f"{source}:{idl}" for idl in idls],
        "ros_interface_dependencies": [
            f"{name}:{idl}" for name, share in shares.items() for idl in share.glob("*/*.idl")
        ],
        "target_dependencies": [],
        "include_paths": [f"{name}:{share}" for name, share in shares.items()],
        "type_description_tuples": [f"{idl}:{(described / idl).with_suffix('.json')}" for idl in idls],
        "ros_interface_files": [str(source / path) for path in definitions],
    }
    script = ["import pathlib", "from rosidl_adapter import convert_to_idl", f"s = pathlib.Path({str(source)!r})"]
    script += [f"convert_to_idl(s, {package!r}, pathlib.Path({path!r}), s)" for path in definitions]
    for generator, call in GENERATORS.items():
        templates, output = _share(generator) / "resource", scratch / generator / package
        (output / "msg").mkdir(parents=True)
        for control in templates.glob("*visibility_control.h.in"):
            text = control.read_text().replace("@PROJECT_NAME@", package)
            (output / "msg" / control.stem).write_text(text.replace("@PROJECT_NAME_UPPER@", package.upper()))
        own = {"output_dir": str(output), "template_dir": str(templates)}
        if generator != "rosidl_generator_c":
            own["type_description_tuples"] = []
        arguments = scratch / f"{generator}.json"
        arguments.write_text(json.dumps({**common, **own}))
        script += [f"a = {str(arguments)!r}", call]
    (scratch / "rosidl_generator_py" / package / "__init__.py").touch()
    _run([sys.executable, "-c", "\n".join(script)])


def _compile(package, scratch, depends):
    """Build the libraries beside the Python code; returns the folder above the package."""
    prefixes = sorted({str(_share(name).parents[1]) for name in (*depends, "rosidl_runtime_c", FAST)})
    folders = [scratch / generator for generator in GENERATORS]
    folders += [path for prefix in prefixes for path in (Path(prefix) / "include").iterdir() if path.is_dir()]
    folders += [sysconfig.get_path("include"), np.get_include(), *(Path(prefix) / "include" for prefix in prefixes)]
    include = [f"-I{folder}" for folder in folders]

    def compiled(generator):
        sources = [p for p in (scratch / generator).rglob("*.c*") if p.suffix in (".c", ".cpp")]
        outputs = [scratch / f"{generator}{i}.o" for i in range(len(sources))]
        for path, output in zip(sources, outputs, strict=True):
            compiler = "g++" if path.suffix == ".cpp" else "gcc"
            _run([compiler, "-O0", "-fPIC", "-w", *include, "-c", str(path), "-o", str(output)])
        return [str(output) for output in outputs]

    with ThreadPoolExecutor(2) as pool:
        objects = dict(zip(GENERATORS, pool.map(compiled, GENERATORS), strict=True))
    python = scratch / "rosidl_generator_py"
    installed = [f"{name}__{part}" for name in depends for part in ("rosidl_generator_c", "rosidl_generator_py")]
    installed += [f"{name}__{part}" for name in depends for part in (FAST, INTROSPECTION, "rosidl_typesupport_c")]
    installed += ["rosidl_runtime_c", "rosidl_typesupport_c", FAST, "rosidl_typesupport_fastrtps_cpp", "fastcdr"]
    where = [flag for prefix in prefixes for flag in (f"-L{prefix}/lib", f"-Wl,-rpath,{prefix}/lib")]

    def linked(file, parts, uses=()):
        own = ["-Wl,--no-as-needed", *(str(python / package / name) for name in uses), "-Wl,--as-needed"]
        parts = [item for part in parts for item in objects[part]]
        flags = [f"-Wl,-soname,{file}", "-Wl,-rpath,$ORIGIN", *where, *(f"-l{name}" for name in installed)]
        _run(["g++", "-shared", *parts, *own, *flags, "-o", str(python / package / file)])
        return file

    # rosidl_typesupport_c asks the loader for these by name; the extension has them loaded by then.
    fast = linked(f"lib{package}__{FAST}.so", ["rosidl_generator_c", FAST])
    introspection = linked(f"lib{package}__{INTROSPECTION}.so", [INTROSPECTION], [fast])
    extension = f"{package}_s__rosidl_typesupport_c.so"
    linked(extension, ["rosidl_typesupport_c", "rosidl_generator_py"], [fast, introspection])
    return python
