# The image of the workers, and of `simsearch serve` before Milvus.
#
#   docker build -f scripts/deploy/cluster.Dockerfile -t registry.example.org/simsearch:0.1.0 .
FROM python:3.12-slim
COPY . /src
RUN pip install --no-cache-dir '/src[cluster,serve,parquet,heif]' && rm -r /src && useradd -m simsearch
USER simsearch
EXPOSE 8000
# A key is asked for as soon as it listens beyond loopback: give $SIMSEARCH_API_KEY.
CMD ["simsearch", "serve", "-i", "milvus://milvus:19530/photos", "--host", "0.0.0.0"]
