"""The CUDA driver, as far as a worker needs it whatever its engine is: what a device is, and how much of its memory is free.

`libcuda.so.1` comes with the driver, so that this works without torch and whatever CUDA the engine brings along. Not used in the
process of a Python policy: it decides what it sees of the devices before CUDA starts. See `device_memory/probe.py`.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final, NamedTuple

from pillion_worker.errors import DriverError

_LIBRARY: Final = "libcuda.so.1"
_KERNEL_MODULE: Final = "/proc/driver/nvidia/version"
_COMPUTE_MAJOR: Final = 75
_COMPUTE_MINOR: Final = 76
"""Of CUdevice_attribute."""
_NAME_BYTES: Final = 256
_PORTABLE: Final = 1
"""CU_MEMHOSTREGISTER_PORTABLE: page-locked for whichever context copies."""
_OUT_OF_MEMORY: Final = 2
"""Of CUresult."""


class DeviceMemory(NamedTuple):
    """The memory of a device, of all processes."""

    free_bytes: int
    total_bytes: int


FreeMemory = dict[str, DeviceMemory]
"""What is free of each device, by its name, such as `cuda:0`."""


class CudaDriver:
    """One device of the driver. Shares the primary context of its process with the CUDA runtime, so that of any engine.

    Raises `DriverError` if there is no driver, or no such device.
    """

    def __init__(self, index: int, library: Any | None = None) -> None:
        self._library = _load() if library is None else library
        self._call("cuInit", 0)
        self._device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._device), index)

    def name(self) -> str:
        """The name of the device, such as `NVIDIA H200`."""
        text = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", text, _NAME_BYTES, self._device)
        return text.value.decode("utf-8", "replace")

    def compute_capability(self) -> str:
        """Its generation, such as `9.0`."""
        return ".".join(str(self._attribute(each)) for each in (_COMPUTE_MAJOR, _COMPUTE_MINOR))

    def driver(self) -> str:
        """The version of the driver: the CUDA that it can do, and its kernel module's own words."""
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        try:
            with open(_KERNEL_MODULE) as file:
                return f"{version.value} {' '.join(file.readline().split())}"
        except OSError:
            # Some containers hide it.
            return str(version.value)

    def memory(self) -> DeviceMemory:
        """How much memory of the device is free now. The first call makes the context of this process there.

        Nothing is free (0 of 0) where not even that has room.
        """
        if not self._enter():
            return DeviceMemory(0, 0)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return DeviceMemory(free.value, total.value)

    def register(self, address: int, size_bytes: int) -> bool:
        """Registers memory of the host as page-locked; returns whether the driver did. It must stay mapped from then on."""
        if not self._enter():
            return False
        register = self._library.cuMemHostRegister_v2
        return int(register(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes), _PORTABLE)) == 0

    def reset(self) -> None:
        """Ends the context of this process on the device, with all that is in it, whoever made it."""
        self._call("cuDevicePrimaryCtxReset_v2", self._device)

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return value.value

    def _enter(self) -> bool:
        """Makes the context of this process the current one. Returns whether the device has room for it."""
        context = ctypes.c_void_p()
        result = int(self._library.cuDevicePrimaryCtxRetain(ctypes.byref(context), self._device))
        if result == _OUT_OF_MEMORY:
            return False
        _check("cuDevicePrimaryCtxRetain", result)
        self._call("cuCtxSetCurrent", context)
        return True

    def _call(self, name: str, *arguments: Any) -> None:
        _check(name, getattr(self._library, name)(*arguments))


def device_count() -> int:
    """How many devices this process sees. Raises `DriverError`."""
    library, count = _load(), ctypes.c_int()
    _check("cuInit", library.cuInit(0))
    _check("cuDeviceGetCount", library.cuDeviceGetCount(ctypes.byref(count)))
    return count.value


def _check(name: str, result: Any) -> None:
    if int(result) != 0:
        raise DriverError(f"the CUDA driver refuses {name}: error {int(result)}")


def _load() -> Any:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError:
        raise DriverError(f"there is no CUDA driver ({_LIBRARY})") from None
