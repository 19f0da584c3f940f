"""The default codec: principal directions, trellis codes by tiers of importance, a fitted decoder."""
