"""Pre-trained encoders from files of others, and what is refused."""

import os

import pytest
import torch
from safetensors.torch import save_file

from medsegcore.errors import ModelWeightsError
from medsegcore.networks import create_network
from medsegcore.training.transfer import transfer_encoder

SMALL = {"depth": 10, "width": 4, "decoder_width": 4}


@pytest.fixture
def pretrained():
    torch.manual_seed(1)
    return create_network("edge_attention_pretraining", {"depth": 10, "width": 4})


@pytest.mark.parametrize("form", ["med3d", "safetensors", "plain"])
def test_an_encoder_starts_from_the_file_of_a_pretraining(pretrained, form, tmp_path):
    state = {k: v.clone() for k, v in pretrained.state_dict().items()}
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "plain":
        torch.save(state, path)
    else:
        # As Med3D has them: wrapped for several GPUs, no counters, a head of its own.
        encoder = {k.removeprefix("encoder."): v for k, v in state.items()}
        wrapped = {f"module.{k}": v for k, v in encoder.items() if "num_batches" not in k}
        torch.save({"state_dict": wrapped, "epoch": 3}, path)
    network = create_network("edge_attention", SMALL)
    transfer_encoder(network, path, freeze=True)
    for name, value in pretrained.encoder.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(network.encoder.state_dict()[name], value)
    assert network.encoder.frozen


def test_weights_of_another_depth_say_so(pretrained, tmp_path):
    torch.save(pretrained.state_dict(), tmp_path / "w.pth")
    network = create_network("edge_attention", {**SMALL, "depth": 18})
    with pytest.raises(ModelWeightsError, match="another encoder"):
        transfer_encoder(network, tmp_path / "w.pth")


class Harmful:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    torch.save({"state_dict": Harmful(tmp_path / "ran")}, tmp_path / "w.pth")
    network = create_network("edge_attention", SMALL)
    with pytest.raises(ModelWeightsError, match="more than tensors"):
        transfer_encoder(network, tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_absent_broken_and_empty_files_are_told_apart(tmp_path):
    network = create_network("edge_attention", SMALL)
    with pytest.raises(ModelWeightsError, match="are missing"):
        transfer_encoder(network, tmp_path / "absent.pth")
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ModelWeightsError, match="cannot be read"):
        transfer_encoder(network, tmp_path / "cut.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ModelWeightsError, match="hold no tensors"):
        transfer_encoder(network, tmp_path / "empty.pth")
