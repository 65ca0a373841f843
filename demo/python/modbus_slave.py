#!/usr/bin/env python3
"""Two Modbus RTU slaves on one serial port, for tests and the demo.

    modbus_slave.py PORT [REGISTERS]

PORT is a serial port or pseudo-terminal, 9600 8N1. Slaves 1 and 2 answer, any other id is met
with silence. An address that is not in this list is refused with exception 2:

    input 0            temperature in 0.1 Cel, one more each second, from 200 to 299 and again
                       (slave 2: from 300 to 399)
    input 1            relative humidity in 0.1 %RH: 631
    input 2            CO2 in ppm: 612
    input 3 and on     their own address, up to REGISTERS registers in all (default 3)
    holding 10 and 11  flow in l/s: FLOAT32 1.25, low word first (byte order CDAB)
    holding 20         setpoint in 0.1 Cel: 190; may be written

Prints "ready" once it listens. Ends with SIGTERM or SIGINT.
"""

import argparse
import asyncio
import signal
import struct
import time

from pymodbus import FramerType
from pymodbus.server import ModbusSerialServer
from pymodbus.simulator import DataType, SimData, SimDevice

READ_INPUT_REGISTERS = 4
SLAVES = {1: 200, 2: 300}  # id: lowest raw temperature
STARTED = time.monotonic()


def slave(slave_id: int, coldest: int, registers: int) -> SimDevice:
    """Describes one slave whose temperature starts at `coldest`."""

    async def warm_up(function, start_address, _address, _count, current, _values):
        if function == READ_INPUT_REGISTERS:
            current[0 - start_address] = coldest + int(time.monotonic() - STARTED) % 100

    high_word, low_word = struct.unpack(">HH", struct.pack(">f", 1.25))
    bits = [SimData(0, values=[False] * 16, datatype=DataType.BITS)]
    holding = [
        SimData(10, values=[low_word, high_word], datatype=DataType.REGISTERS),
        SimData(20, values=190, datatype=DataType.REGISTERS),
    ]
    inputs = [coldest, 631, 612, *range(3, registers)]
    return SimDevice(
        slave_id,
        simdata=(bits, bits, holding, [SimData(0, values=inputs, datatype=DataType.REGISTERS)]),
        action=warm_up,
    )


def ours(_sending: bool, pdu):
    """Drops what is for other slaves; pymodbus itself would answer with an exception."""
    return pdu if pdu.dev_id in SLAVES else None


async def serve(port: str, registers: int) -> None:
    """Answers on `port` until asked to stop."""
    server = ModbusSerialServer(
        [slave(slave_id, coldest, registers) for slave_id, coldest in SLAVES.items()],
        framer=FramerType.RTU,
        port=port,
        baudrate=9600,
        trace_pdu=ours,
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await server.serve_forever(background=True)
    print("ready", flush=True)
    await stop.wait()
    await server.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Two Modbus RTU slaves on one serial port.")
    parser.add_argument("port", help="serial port or pseudo-terminal")
    parser.add_argument("registers", nargs="?", type=int, default=3, help="input registers, 3 to 1000")
    arguments = parser.parse_args()
    if not 3 <= arguments.registers <= 1000:
        parser.error("registers: 3 to 1000")
    asyncio.run(serve(arguments.port, arguments.registers))
