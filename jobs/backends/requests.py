"""What is asked of a backend: a training job, an endpoint, a transform job. Places are URIs."""

from dataclasses import dataclass, field

DEFAULT_MAX_PAYLOAD = 6  # MB; TorchServe's own limit is 6553500 bytes


@dataclass(frozen=True)
class TrainingRequest:
    """A training job of source/entry_point.py: channels by name, hyperparameters as on its command line."""

    name: str
    channels: dict[str, str]
    hyperparameters: dict[str, str]
    instance_count: int = 1
    distribution: str | None = None  # such as torch_distributed
    output: str | None = None  # by default the backend's own place
    checkpoints: str | None = None
    volume_size: int = 30  # GB
    max_run: int = 86400  # seconds
    spot: bool = False
    max_wait: int | None = None  # seconds, for spot instances alone

    @property
    def kind(self) -> str:
        """What quotas and instance types depend on."""
        return "spot training" if self.spot else "training"

    @property
    def most_instances(self) -> int:
        return self.instance_count

    @property
    def reads(self) -> list[str]:
        """The URIs that the job reads."""
        return list(self.channels.values())

    @property
    def writes(self) -> list[str]:
        """The URIs that the job writes below."""
        return [uri for uri in (self.output, self.checkpoints) if uri]


@dataclass(frozen=True)
class EndpointRequest:
    """An endpoint that serves a bundle. This machine has no sizes of disks, serverless endpoints and scaling."""

    name: str
    model_data: str
    instance_count: int = 1
    env: dict[str, str] = field(default_factory=dict)
    volume_size: int | None = None  # GB
    serverless_memory: int | None = None  # MB; such an endpoint has no instances
    serverless_concurrency: int = 5  # requests at once
    async_output: str | None = None  # an asynchronous endpoint answers below this URI
    min_instances: int = 1
    max_instances: int | None = None  # None: the number of instances stays
    target_invocations: float = 200  # a minute and instance; of an asynchronous endpoint, requests that wait for one
    data_capture: int | None = None  # percent of the requests

    kind = "endpoint"

    @property
    def most_instances(self) -> int:
        """How many instances there may ever be."""
        return max(self.instance_count, self.max_instances or 0)

    @property
    def reads(self) -> list[str]:
        """The URIs that the endpoint reads."""
        return [self.model_data]

    @property
    def writes(self) -> list[str]:
        """The URIs that the endpoint writes below."""
        return [self.async_output] if self.async_output else []


@dataclass(frozen=True)
class TransformRequest:
    """A transform job of a bundle over a prefix or a manifest. None leaves a setting to SageMaker."""

    name: str
    model_data: str
    source: str
    data_type: str = "S3Prefix"  # or ManifestFile
    output: str | None = None  # by default the backend's own place
    instance_count: int = 1
    env: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/x-image"
    accept: str = "application/json"
    max_concurrent_transforms: int = 4
    max_payload: int = DEFAULT_MAX_PAYLOAD  # MB
    compression_type: str | None = None
    split_type: str | None = None
    strategy: str | None = None
    assemble_with: str | None = None
    input_filter: str | None = None
    output_filter: str | None = None
    join_source: str | None = None
    max_retries: int | None = None
    timeout: int | None = None  # seconds

    kind = "transform"

    @property
    def most_instances(self) -> int:
        return self.instance_count

    @property
    def reads(self) -> list[str]:
        """The URIs that the checks look at: the model. The inputs have been listed before."""
        return [self.model_data]

    @property
    def writes(self) -> list[str]:
        """The URIs that the job writes below."""
        return [self.output] if self.output else []


Request = TrainingRequest | EndpointRequest | TransformRequest
