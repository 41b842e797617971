import pytest
import soundfile

from perceiver.data import files


@pytest.fixture
def warnings(monkeypatch, caplog) -> pytest.LogCaptureFixture:
    """The log of a process that has not warned before."""
    monkeypatch.setattr(files, "_warned", set())
    return caplog


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """The number of samples that each call of soundfile decoded."""
    lengths, original = [], soundfile.SoundFile.read

    def counting_read(self, *args, **kwargs):
        block = original(self, *args, **kwargs)
        lengths.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counting_read)
    return lengths
