"""Pinhole cameras: project world points, cast rays through pixels, lift pixels to 3D.

Conventions (OpenCV): pixels are (x, y) and an integer is a pixel's centre, so an image of width W spans x in [-0.5, W - 0.5].
The camera frame is x right, y down, z forward. Lengths are metres. All functions are differentiable and batched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


class Distortion(Protocol):
    """The hook for lens distortion: maps between ideal and distorted normalised image coordinates (x / z, y / z).

    The simulators here are ideal pinholes; for a real lens pass an object with these two methods (for example the
    Brown-Conrady model), and every projection and ray goes through it.
    """

    def distort(self, ideal: Tensor) -> Tensor: ...

    def undistort(self, distorted: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Camera:
    """Calibrated cameras, one per batch element.

    Args:
        intrinsics: (*b, 3, 3) matrix K in pixels.
        world_T_camera: (*b, 4, 4) pose; maps camera coordinates to world coordinates.
        distortion: optional lens model, shared by the batch.

    Raises:
        ValueError: wrong shapes or types, intrinsics that are none (a focal length that is not positive, a transposed or scaled
            matrix), or a pose that is not a rigid motion.
    """

    intrinsics: Tensor
    world_T_camera: Tensor
    distortion: Distortion | None = None

    def __post_init__(self) -> None:
        K, pose = self.intrinsics, self.world_T_camera
        if K.shape[-2:] != (3, 3) or pose.shape[-2:] != (4, 4) or K.shape[:-2] != pose.shape[:-2]:
            raise ValueError(
                f"camera wants intrinsics (*b, 3, 3) and world_T_camera (*b, 4, 4), got {tuple(K.shape)} and {tuple(pose.shape)}"
            )
        if K.dtype != pose.dtype or not K.is_floating_point():
            raise ValueError(f"camera wants intrinsics and world_T_camera of one floating type, got {K.dtype} and {pose.dtype}")
        focal = torch.stack([K[..., 0, 0], K[..., 1, 1]], -1).detach()
        if not bool(torch.isfinite(K).all() & (focal > 0).all()):
            raise ValueError(f"camera focal lengths must be finite and positive, got {focal.flatten().tolist()[:8]} px")
        below = torch.cat([K[..., 1, :1], K[..., 2, :]], -1).detach()
        if bool(((below - torch.tensor([0.0, 0.0, 0.0, 1.0]).to(below)).abs() > 1e-3).any()):
            raise ValueError(
                f"camera intrinsics must be 0 below the diagonal and end in 1, got {K.detach().reshape(-1, 3, 3)[0].tolist()}; "
                "are they transposed or scaled? The principal point belongs in the last column"
            )
        rotation = pose[..., :3, :3].detach()
        defect = (rotation @ rotation.mT - torch.eye(3).to(rotation)).abs().amax() if rotation.numel() else rotation.sum()
        if not bool(torch.isfinite(pose).all()) or float(defect) > 1e-3 or bool((torch.linalg.det(rotation) < 0).any()):
            raise ValueError(
                f"world_T_camera must be a rigid motion; its rotation is off orthonormal by {float(defect):.3g} (limit 0.001) "
                "or mirrored; pass a pose, not its scaled or transposed form"
            )
        bottom = pose[..., 3, :].detach()
        if bool(((bottom - torch.tensor([0.0, 0.0, 0.0, 1.0]).to(bottom)).abs() > 1e-3).any()):
            raise ValueError(
                f"world_T_camera must end in the row (0, 0, 0, 1), got {bottom.reshape(-1, 4)[:1].tolist()}; "
                "is it transposed? Translations belong in the last column"
            )

    # ---------------------------------------------------------------- construction

    @classmethod
    def from_fov(cls, fovy_deg: float, size: tuple[int, int], world_T_camera: Tensor) -> Camera:
        """An ideal pinhole with square pixels.

        Args:
            fovy_deg: vertical field of view in degrees, between the outer edges of the first and last row.
            size: (height, width) in pixels.
            world_T_camera: (*b, 4, 4).
        """
        height, width = size
        half = torch.deg2rad(torch.tensor(fovy_deg / 2, dtype=world_T_camera.dtype))
        focal = height / 2 / torch.tan(half)
        K = torch.eye(3).to(world_T_camera)
        K[0, 0] = K[1, 1] = focal
        K[0, 2], K[1, 2] = (width - 1) / 2, (height - 1) / 2
        return cls(K.expand(*world_T_camera.shape[:-2], 3, 3).clone(), world_T_camera)

    @classmethod
    def stack(cls, cameras: Sequence[Camera]) -> Camera:
        """Batch cameras of equal shape along a new first dimension.

        Raises:
            ValueError: no cameras, or their lenses differ.
        """
        if not cameras or any(c.distortion != cameras[0].distortion for c in cameras):
            raise ValueError(f"stack wants cameras that share one lens, got {[c.distortion for c in cameras]}")
        return cls(
            torch.stack([c.intrinsics for c in cameras]),
            torch.stack([c.world_T_camera for c in cameras]),
            cameras[0].distortion,
        )

    def __getitem__(self, index) -> Camera:
        return replace(self, intrinsics=self.intrinsics[index], world_T_camera=self.world_T_camera[index])

    def to(self, *args, **kwargs) -> Camera:
        """Move or cast, as `torch.Tensor.to`."""
        return replace(self, intrinsics=self.intrinsics.to(*args, **kwargs), world_T_camera=self.world_T_camera.to(*args, **kwargs))

    @property
    def batch_shape(self) -> torch.Size:
        return self.intrinsics.shape[:-2]

    @property
    def position(self) -> Tensor:
        """(*b, 3) optical centre in the world."""
        return self.world_T_camera[..., :3, 3]

    # ---------------------------------------------------------------- points and rays

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Project world points.

        Args:
            points: (*b, n, 3) metres, world frame.

        Returns:
            pixels (*b, n, 2) and depth (*b, n), the z coordinate in the camera frame in metres. Pixels mean nothing where
            depth <= 0 (the point is behind the camera); they are finite there, so that a mask can drop them.
        """
        rotation = self.world_T_camera[..., :3, :3]
        local = (points - self.position[..., None, :]) @ rotation
        depth = local[..., 2]
        safe = torch.where(depth.abs() < 1e-6, torch.full_like(depth, 1e-6), depth)
        ideal = local[..., :2] / safe[..., None]
        if self.distortion is not None:
            ideal = self.distortion.distort(ideal)
        return ideal @ self.intrinsics[..., :2, :2].mT + self.intrinsics[..., None, :2, 2], depth

    def rays(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Rays through pixels.

        Args:
            pixels: (*b, n, 2).

        Returns:
            origins (*b, n, 3) and unit directions (*b, n, 3) in the world frame.
        """
        centred = pixels - self.intrinsics[..., None, :2, 2]
        ideal = torch.linalg.solve_triangular(self.intrinsics[..., :2, :2], centred.mT, upper=True).mT
        if self.distortion is not None:
            ideal = self.distortion.undistort(ideal)
        local = torch.cat([ideal, torch.ones_like(ideal[..., :1])], -1)
        directions = torch.nn.functional.normalize(local @ self.world_T_camera[..., :3, :3].mT, dim=-1)
        return self.position[..., None, :].expand_as(directions), directions

    def lift_at_height(self, pixels: Tensor, height_m: Tensor) -> Tensor:
        """Where the rays through pixels meet the horizontal planes z = height.

        Args:
            pixels: (*b, n, 2).
            height_m: (*b, n) world z in metres.

        Returns:
            (*b, n, 3) world points; NaN where the ray is parallel to the plane or meets it behind the camera.
        """
        origins, directions = self.rays(pixels)
        slope = directions[..., 2]
        parallel = slope.abs() < 1e-9
        distance = (height_m - origins[..., 2]) / torch.where(parallel, torch.ones_like(slope), slope)
        met = ~parallel & (distance >= 0)
        # NaN enters last: inside the arithmetic it would reach the gradients of points that a mask has dropped.
        points = origins + distance[..., None] * directions
        return torch.where(met[..., None], points, torch.full_like(points, torch.nan))

    def lift_at_distance(self, pixels: Tensor, distance_m: Tensor) -> Tensor:
        """The points at a distance along the rays through pixels.

        Args:
            pixels: (*b, n, 2).
            distance_m: (*b, n) Euclidean distance from the optical centre in metres (not camera z).

        Returns:
            (*b, n, 3) world points.
        """
        origins, directions = self.rays(pixels)
        return origins + distance_m[..., None] * directions

    def lift_at_depth(self, pixels: Tensor, depth_m: Tensor) -> Tensor:
        """The points seen in pixels at a depth, as depth images give it: what `project` takes apart.

        Args:
            pixels: (*b, n, 2).
            depth_m: (*b, n) camera z in metres.

        Returns:
            (*b, n, 3) world points.
        """
        origins, directions = self.rays(pixels)
        along = (directions * self.world_T_camera[..., None, :3, 2]).sum(-1)
        return origins + (depth_m / along)[..., None] * directions

    # ---------------------------------------------------------------- exact image warps

    def warped(self, zoom: Tensor, rotation: Tensor) -> tuple[Camera, Tensor]:
        """The camera after a zoom and a rotation about its own centre, and the homography between the two images.

        Rotating a camera about its centre moves every pixel by a homography whatever the depth (Hartley and Zisserman,
        Multiple View Geometry, section 8.4), so an image can be re-rendered for the new camera without knowing the scene.

        Args:
            zoom: (*b,) factor on the focal length.
            rotation: (*b, 3, 3) old_R_new: the new camera's axes in the old camera's frame.

        Returns:
            the new camera, and H (*b, 3, 3) with old_pixel ~ H new_pixel in homogeneous coordinates.

        Raises:
            ValueError: the camera has lens distortion, for which the warp is no homography.
        """
        if self.distortion is not None:
            raise ValueError("warped() needs an ideal pinhole: undistort the images first, then pass distortion=None")
        K = self.intrinsics.clone()
        K[..., 0, 0] *= zoom
        K[..., 1, 1] *= zoom
        pose = self.world_T_camera.clone()
        pose[..., :3, :3] = pose[..., :3, :3] @ rotation
        return replace(self, intrinsics=K, world_T_camera=pose), self.intrinsics @ rotation @ torch.linalg.inv(K)

    def orbited(self, angle: Tensor, plane_m: float) -> tuple[Camera, Tensor, Tensor]:
        """The camera after a turn about the vertical axis through the point of a plane that it looks at, in a world that leans.

        What a moved camera sees depends on depth, which an image does not tell. But the move takes the camera's centre from C to
        C' at the same height, and so does a shear of the world along the plane, x -> x + a (z - plane_m) with a = (C' - C) /
        (C_z - plane_m). Rays stay rays under it, so the image of the sheared world is a homography of the old one, whatever the
        depth: what lies on the plane looks as from the new side, what stands on it leans, the more the flatter the view, and
        heights stay.

        Args:
            angle: (*b,) radians, anticlockwise seen from above. plane_m: world z of the horizontal plane.

        Returns:
            the new camera, which stays where it was if it does not look down at the plane; H (*b, 3, 3) with old_pixel ~ H
            new_pixel in homogeneous coordinates; and a (*b, 3), whose z is 0.

        Raises:
            ValueError: the camera has lens distortion, for which the warp is no homography.
        """
        if self.distortion is not None:
            raise ValueError("orbited() needs an ideal pinhole: undistort the images first, then pass distortion=None")
        K, pose = self.intrinsics, self.world_T_camera.clone()
        height = torch.full((*self.batch_shape, 1), plane_m).to(K)
        target = self.lift_at_height(K[..., None, :2, 2], height)[..., 0, :]
        above = self.position[..., 2] - plane_m
        still = target.isnan().any(-1) | (above == 0)
        angle = torch.where(still, 0.0, angle)
        cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
        turn = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], -1).unflatten(-1, (3, 3))
        away = self.position - target.nan_to_num()
        moved = (turn @ away[..., None])[..., 0] - away
        lean = moved / torch.where(still, 1.0, above)[..., None]
        pose[..., :3, :3] = turn @ pose[..., :3, :3]
        pose[..., :3, 3] += moved
        upright = torch.eye(3).to(K).repeat(*self.batch_shape, 1, 1)
        upright[..., :2, 2] -= lean[..., :2]  # of directions
        back = self.world_T_camera[..., :3, :3].mT @ upright @ pose[..., :3, :3]
        return replace(self, world_T_camera=pose), K @ back @ torch.linalg.inv(K), lean

    def mirrored(self, width: int, reflection: Tensor) -> Camera:
        """The camera that sees the reflected world in the flipped image: where this one sees a point p at pixel (x, y), that one
        sees `reflection @ p` at (width - 1 - x, y).

        Args:
            width: of the image in pixels. reflection: (3, 3) orthogonal, determinant -1; a mirror through the world's origin.

        Raises:
            ValueError: the camera has lens distortion, or the matrix is no reflection.
        """
        if self.distortion is not None:
            raise ValueError("mirrored() needs an ideal pinhole: undistort the images first, then pass distortion=None")
        defect = float((reflection @ reflection.mT - torch.eye(3).to(reflection)).abs().max())
        if defect > 1e-4 or float(torch.linalg.det(reflection)) > 0:
            raise ValueError(f"mirrored() wants an orthogonal matrix with determinant -1, got {reflection.tolist()}")
        K, pose = self.intrinsics.clone(), self.world_T_camera.clone()
        K[..., 0, 2] = width - 1 - K[..., 0, 2]
        K[..., 0, 1] = -K[..., 0, 1]
        pose[..., :3, :] = reflection @ pose[..., :3, :]
        pose[..., :3, 0] *= -1  # the flipped image's x axis: the frame is right-handed again
        return replace(self, intrinsics=K, world_T_camera=pose)


def look_at(position: Tensor, target: Tensor, up: Tensor | None = None) -> Tensor:
    """The pose of a camera at `position` that looks at `target` with `up` towards the top of the image.

    Args:
        position: (*b, 3) metres. target: (*b, 3) metres. up: (*b, 3) or (3,), default world z.

    Returns:
        (*b, 4, 4) world_T_camera.

    Raises:
        ValueError: position equals target, or the view direction is parallel to `up`.
    """
    up = torch.tensor([0.0, 0.0, 1.0]).to(position) if up is None else up
    forward = target - position
    if bool((forward.norm(dim=-1) < 1e-9).any()):
        raise ValueError(f"look_at: position and target coincide at {position.tolist()}; move one of them")
    forward = torch.nn.functional.normalize(forward, dim=-1)
    right = torch.linalg.cross(forward, up.expand_as(forward))
    if bool((right.norm(dim=-1) < 1e-6).any()):
        raise ValueError("look_at: the view direction is parallel to `up`; pass another `up`, such as (0, 1, 0)")
    right = torch.nn.functional.normalize(right, dim=-1)
    down = torch.linalg.cross(forward, right)
    pose = torch.zeros(*position.shape[:-1], 4, 4, dtype=position.dtype, device=position.device)
    pose[..., :3, :3] = torch.stack([right, down, forward], -1)
    pose[..., :3, 3] = position
    pose[..., 3, 3] = 1
    return pose


def orbit(azimuth_deg: float, elevation_deg: float, distance_m: float, target: Sequence[float]) -> Tensor:
    """The pose of a camera on a sphere around `target`, by MuJoCo's angles.

    Args:
        azimuth_deg: direction of view in the ground plane, anticlockwise from +x. elevation_deg: of the view direction;
            negative looks down. distance_m: from camera to target. target: (x, y, z) metres.

    Returns:
        (4, 4) world_T_camera, float64.
    """
    azimuth, elevation = torch.deg2rad(torch.tensor([azimuth_deg, elevation_deg], dtype=torch.float64))
    forward = torch.stack([elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()])
    centre = torch.tensor(list(target), dtype=torch.float64)
    return look_at(centre - distance_m * forward, centre)


def rotation_about(axis: Sequence[float], angle_deg: float) -> Tensor:
    """The rotation about an axis (x, y, z) of any length by an angle, anticlockwise seen from its tip: (3, 3) float64."""
    x, y, z = torch.nn.functional.normalize(torch.tensor(list(axis), dtype=torch.float64), dim=0).tolist()
    generator = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    return torch.linalg.matrix_exp(math.radians(angle_deg) * generator)
