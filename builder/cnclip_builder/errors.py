"""What can go wrong in a build. Every message says what was wrong, where, and how to mend it.

BuildError
├── UnknownArchError        no such architecture
├── CheckpointError         no usable checkpoint: missing, truncated, unsafe, of another architecture
│   └── HubError            the official checkpoint could not be fetched
├── SettingError            an option out of its range
├── MissingRequirementError a GPU, a library or disk space that this step needs and the machine lacks
├── PlanError               a TensorRT plan that can't be built, or is another GPU's, version's or ONNX file's
├── ParityError             an artefact's outputs are not PyTorch's
├── SlowerError             an INT8 encoder that is not faster than FP32 here
└── RepositoryError         a model repository that is not well formed, or can't be written
"""


class BuildError(Exception):
    """The root of all errors of the builder."""


class UnknownArchError(BuildError):
    """No architecture has this name."""


class CheckpointError(BuildError):
    """The checkpoint can't be used."""


class HubError(CheckpointError):
    """An official checkpoint could not be fetched."""


class SettingError(BuildError):
    """An option is out of its range."""


class MissingRequirementError(BuildError):
    """The machine lacks what a step needs."""


class PlanError(BuildError):
    """A TensorRT plan can't be built or used."""


class ParityError(BuildError):
    """An artefact's outputs differ from PyTorch's."""


class SlowerError(BuildError):
    """An INT8 encoder is not faster than FP32 on this machine."""


class RepositoryError(BuildError):
    """A model repository is not well formed, or can't be written."""
