from tests.fakes.fixtures import broker, emulator, fake

__all__ = ["broker", "emulator", "fake"]
