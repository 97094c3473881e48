"""Fused sparse attention on the CPU: C++ loops, the library that holds them, their launch."""
