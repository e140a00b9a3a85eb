"""The CPU's name: of each kind of system as its kernel tells it, and as util-linux's lscpu reads the same file."""

import io
import os
import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlexp.harness import measure, processor


def core(implementer: int, part: int, number: int = 0) -> str:
    """A core in the /proc/cpuinfo of an ARM."""
    return (
        f"processor\t: {number}\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd\nCPU implementer\t: {implementer:#04x}\n"
        f"CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: {part:#05x}\nCPU revision\t: 1\n\n"
    )


X86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9654: 96-Core  Processor \n\n"
SYSTEMS = {
    "AMD EPYC 9654: 96-Core  Processor": X86 + X86.replace("9654", "0000"),
    "ARM Neoverse-N1": core(0x41, 0xD0C) + core(0x41, 0xD0C, 1),  # Graviton2, Altra
    "ARM Neoverse-V1": core(0x41, 0xD40),
    "ARM Cortex-A55 + ARM Cortex-A76": core(0x41, 0xD05) + core(0x41, 0xD05, 1) + core(0x41, 0xD0B, 2),
    "Apple part 0x000": core(0x61, 0x000),  # a virtual machine on a Mac
    "ARM part 0xfff": core(0x41, 0xFFF),
    "ARM by 0x99 part 0x123": core(0x99, 0x123),
    "ARM Cortex-A72": "processor\t: 0\nmodel name\t: ARMv7 Processor rev 3 (v7l)\n" + core(0x41, 0xD08),
    "sifive,u74-mc": "processor\t: 0\nhart\t\t: 1\nisa\t\t: rv64imafdc\nmmu\t\t: sv39\nuarch\t\t: sifive,u74-mc\n",
    "rv64imafdc": "processor\t: 0\nhart\t\t: 1\nisa\t\t: rv64imafdc\n",
    "POWER9, altivec supported": "processor\t: 0\ncpu\t\t: POWER9, altivec supported\nclock\t\t: 3800MHz\n",
    "IBM/S390 8561": "vendor_id       : IBM/S390\n# processors    : 1\n"
    "processor 0: version = FF,  identification = 0123A8,  machine = 8561\n",
    "Loongson-3A5000": "system type\t\t: generic\nprocessor\t\t: 0\nModel Name\t\t: Loongson-3A5000\n",
    None: "processor\t: 0\n",
}


@pytest.mark.parametrize(("name", "cpuinfo"), SYSTEMS.items(), ids=map(str, SYSTEMS))
def test_the_name_of_each_kind_of_system(name, cpuinfo):
    assert processor.name_of(cpuinfo) == name


@given(st.integers(0, 0xFF), st.integers(0, 0xFFF), st.integers(0, 0xFF), st.integers(0, 0xFFF))
def test_two_kinds_of_core_never_share_a_name(one, part, other, its_part):
    same = (one, part) == (other, its_part)
    assert (processor.name_of(core(one, part)) == processor.name_of(core(other, its_part))) == same


def test_known_names_are_told_apart():
    names = [processor.arm(hex(maker), hex(part)) for maker, parts in processor.PARTS.items() for part in parts]
    assert len(set(names)) == len(names)
    assert set(processor.PARTS) <= set(processor.IMPLEMENTERS)


@pytest.mark.skipif(shutil.which("lscpu") is None, reason="needs util-linux")
def test_lscpu_reads_the_same_names(tmp_path):
    """Whatever lscpu knows, it calls the same. (It knows the cores of its time.)"""
    folder = tmp_path / "sys/devices/system/cpu/cpu0"
    folder.mkdir(parents=True)
    for name, text in (("possible", "0-0"), ("present", "0")):
        (folder.parent / name).write_text(text)
    (tmp_path / "proc").mkdir()
    agreed, differ = 0, {}
    for maker, parts in processor.PARTS.items():
        for part, ours in parts.items():
            (tmp_path / "proc/cpuinfo").write_text(core(maker, part))
            said = subprocess.run(
                ["lscpu", "-s", tmp_path], capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"}
            ).stdout
            match = re.search(r"Model name: +(\S.*)", said)
            if match and match[1] not in ("-", "0x0", f"{part:#x}"):
                agreed += match[1] == ours
                differ |= {} if match[1] == ours else {ours: match[1]}
    assert not differ and agreed > 20


def test_where_the_kernel_has_no_file_the_system_is_asked(monkeypatch, tmp_path):
    def no_file(path, *args):
        raise FileNotFoundError(path)

    monkeypatch.setattr(processor, "open", no_file, raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(processor.platform, "processor", lambda: "arm")
    sysctl = tmp_path / "sysctl"
    for brand, machine in (("echo Apple $1 M4 $2 Pro", "Apple -n M4 machdep.cpu.brand_string Pro"), ("exit 1", "arm")):
        sysctl.write_text(f"#!/bin/sh\n{brand}\n")
        sysctl.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert processor.cpu_model.__wrapped__() == machine
    monkeypatch.setenv("PATH", "/nowhere")
    assert processor.cpu_model.__wrapped__() == "arm"


def test_on_windows_the_registry_names_it(monkeypatch):
    from types import SimpleNamespace

    registry = SimpleNamespace(
        HKEY_LOCAL_MACHINE=0,
        OpenKey=lambda root, path: path,
        QueryValueEx=lambda key, name: (f"{name} of {key.rpartition(chr(92))[2]}  ", 1),
    )
    monkeypatch.setitem(sys.modules, "winreg", registry)
    monkeypatch.setattr(sys, "platform", "win32")
    assert processor._system_name() == "ProcessorNameString of 0"


def test_machines_of_two_arms_are_two(monkeypatch):
    names = []
    for part in (0xD0C, 0xD40):
        monkeypatch.setattr(processor, "open", lambda path, part=part: io.StringIO(core(0x41, part)), raising=False)
        processor.cpu_model.cache_clear()
        names.append(measure.machine("cpu", 8))
    processor.cpu_model.cache_clear()
    assert [name.partition(",")[0] for name in names] == ["ARM Neoverse-N1", "ARM Neoverse-V1"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_here_it_is_what_the_kernel_says():
    with open("/proc/cpuinfo") as file:
        text = file.read()
    if match := re.search(r"^model name\s*: (.*)$", text, re.MULTILINE):
        assert processor.cpu_model() == match[1].strip()
