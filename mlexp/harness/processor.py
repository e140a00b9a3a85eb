"""The CPU's name for people, from each system's own source; machines that differ have names that differ.

/proc/cpuinfo has a "model name" on x86 alone; for ARM it has numbers, which are looked up here, and shown where they
are not known.
"""

import contextlib
import functools
import platform
import subprocess
import sys

NAMED = ("model name", "cpu model", "uarch", "cpu", "isa")  # x86 and LoongArch; MIPS; RISC-V; POWER; RISC-V again
IMPLEMENTERS = {
    0x41: "ARM", 0x42: "Broadcom", 0x43: "Cavium", 0x46: "Fujitsu", 0x48: "HiSilicon", 0x4E: "NVIDIA", 0x50: "APM",
    0x51: "Qualcomm", 0x53: "Samsung", 0x61: "Apple", 0x6D: "Microsoft", 0x70: "Phytium", 0xC0: "Ampere",
}  # fmt: skip
PARTS = {
    0x41: {
        0xC07: "Cortex-A7", 0xC08: "Cortex-A8", 0xC09: "Cortex-A9", 0xC0F: "Cortex-A15", 0xB76: "ARM1176",
        0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72",
        0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77",
        0xD0E: "Cortex-A76AE", 0xD40: "Neoverse-V1", 0xD41: "Cortex-A78", 0xD42: "Cortex-A78AE", 0xD44: "Cortex-X1",
        0xD46: "Cortex-A510", 0xD47: "Cortex-A710", 0xD48: "Cortex-X2", 0xD49: "Neoverse-N2", 0xD4A: "Neoverse-E1",
        0xD4B: "Cortex-A78C", 0xD4C: "Cortex-X1C", 0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3", 0xD4F: "Neoverse-V2",
        0xD80: "Cortex-A520", 0xD81: "Cortex-A720", 0xD82: "Cortex-X4", 0xD83: "Neoverse-V3AE", 0xD84: "Neoverse-V3",
        0xD85: "Cortex-X925", 0xD87: "Cortex-A725", 0xD8E: "Neoverse-N3",
    },
    0x42: {0x516: "ThunderX2"},
    0x43: {0x0A1: "ThunderX-88XX", 0x0AF: "ThunderX2-99xx", 0x0B8: "ThunderX3-T110"},
    0x46: {0x001: "A64FX"},
    0x48: {0xD01: "Kunpeng-920"},
    0x4E: {0x000: "Denver", 0x003: "Denver 2", 0x004: "Carmel"},
    0x50: {0x000: "X-Gene"},
    0x51: {
        0x001: "Oryon", 0x800: "Falkor-V1/Kryo", 0x802: "Kryo-3XX-Gold", 0x803: "Kryo-3XX-Silver",
        0x804: "Kryo-4XX-Gold", 0x805: "Kryo-4XX-Silver", 0xC00: "Falkor", 0xC01: "Saphira",
    },
    0x61: {
        0x022: "Icestorm-M1", 0x023: "Firestorm-M1", 0x024: "Icestorm-M1-Pro", 0x025: "Firestorm-M1-Pro",
        0x028: "Icestorm-M1-Max", 0x029: "Firestorm-M1-Max", 0x032: "Blizzard-M2", 0x033: "Avalanche-M2",
        0x034: "Blizzard-M2-Pro", 0x035: "Avalanche-M2-Pro", 0x038: "Blizzard-M2-Max", 0x039: "Avalanche-M2-Max",
    },
    0x6D: {0xD49: "Azure-Cobalt-100"},
    0xC0: {0xAC3: "Ampere-1", 0xAC4: "Ampere-1a"},
}  # fmt: skip
"""Names as `lscpu` of util-linux spells them. (An Ampere Altra is a Neoverse-N1, a Graviton4 a Neoverse-V2.)"""


@functools.cache
def cpu_model() -> str:
    """The CPU's own name, else the architecture."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        if name := name_of(file.read()):
            return name
    return _system_name() or platform.processor() or platform.machine()


def name_of(cpuinfo: str) -> str | None:
    """The CPU's name from the text of /proc/cpuinfo; the names of all kinds of its cores, where they are of several."""
    fields: dict[str, list[str]] = {}
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), []).append(value.strip())
    if "cpu implementer" in fields:  # an ARM's "model name", where there is one, fits many
        kinds = zip(fields["cpu implementer"], fields.get("cpu part", []), strict=False)
        return " + ".join(dict.fromkeys(arm(*kind) for kind in kinds)) or None
    if "machine" in "".join(fields.get("processor 0", [])):  # of an IBM Z: "version = FF, ..., machine = 3906"
        return f"{fields['vendor_id'][0]} {fields['processor 0'][0].rpartition('machine =')[2].strip()}"
    return next((fields[name][0] for name in NAMED if fields.get(name, [""])[0]), None)


def arm(implementer: str, part: str) -> str:
    """The name of an ARM core, from its numbers as /proc/cpuinfo has them; the numbers where it is not known."""
    try:
        one, other = int(implementer, 0), int(part, 0)
    except ValueError:
        return f"ARM {implementer} {part}"
    maker = IMPLEMENTERS.get(one, f"ARM by {one:#04x}")
    return f"{maker} {PARTS.get(one, {}).get(other, f'part {other:#05x}')}"


def _system_name() -> str | None:
    """Of systems without /proc: macOS and the BSDs by sysctl, Windows by its registry."""
    if sys.platform == "win32":
        import winreg

        with contextlib.suppress(OSError):
            key = winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0")
            return winreg.QueryValueEx(key, "ProcessorNameString")[0].strip()
        return None
    if sys.platform == "darwin" or "bsd" in sys.platform:
        name = "machdep.cpu.brand_string" if sys.platform == "darwin" else "hw.model"
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=10, check=False)
            return done.stdout.strip() or None
    return None
