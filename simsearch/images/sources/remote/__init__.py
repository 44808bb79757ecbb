"""Sources on other machines: buckets of S3 and Google Cloud Storage, and folders on web servers."""
