"""Data capture of endpoints: its configuration."""

FOLDER = "captured"  # what is captured goes below it: <endpoint>/<variant>/yyyy/mm/dd/hh


def configuration(percent: int, folder: str, session) -> dict:
    """Return the SDK's configuration that keeps so many of the requests below the URI `folder`, as an argument."""
    from sagemaker.model_monitor import DataCaptureConfig

    print(f"captures go to {folder}")
    return {"data_capture_config": DataCaptureConfig(True, percent, folder, sagemaker_session=session)}
