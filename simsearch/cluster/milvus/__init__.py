"""An index in a Milvus collection: address, client, reader, search and push."""
