"""The gRPC side: the only room that knows grpc and protobuf. It translates and guards; it decides nothing."""
