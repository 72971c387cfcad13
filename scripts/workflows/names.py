"""What a workflow is called: by the file for the server, which stays, and by the file of the editor's list of
templates, which says what it is and sorts in the order of learning."""

from __future__ import annotations

TEMPLATES = {
    "avatar_start": "01 Person – start here",
    "avatar_start_two": "02 Person and pet",
    "avatar_several_pictures": "03 Several photos of one person",
    "avatar_variation": "04 A name for the person",
    "avatar_two_people": "05 Two people, a place for each",
    "avatar_mixing": "06 A blend of two people",
    "avatar_saved_subject": "07 Keep a subject",
    "avatar_load_subject": "08 Load a kept subject",
    "avatar_pet_isolated": "09 A pet on a plain background",
    "avatar_inspect": "18 See what the subjects do",
    "avatar_anchored": "19 Person and pet, with adapters",
    "avatar_pose": "11 Pose (ControlNet)",
    "avatar_style_lora": "12 Style (LoRA)",
    "avatar_img2img": "13 Another style, the same picture",
    "avatar_inpaint": "14 Into a picture that exists",
    "avatar_subgraph": "15 As a subgraph",
    "avatar_person": "16 Step by step – a person",
    "avatar_person_and_pet": "17 Step by step – person and pet",
    "sdxl_start": "20 SDXL – your photo",
    "sdxl_person": "21 SDXL – step by step",
    "sdxl_align_face": "22 SDXL – the face chosen by hand",
    "sdxl_small_face": "23 SDXL – a face that was too small",
    "sdxl_hires_fix": "24 SDXL – larger, in two passes",
    "avatar_grid": "10 Prompts and strengths on one sheet",
    "sdxl_anchored_person": "25 SDXL – person with IP-Adapter",
    "sdxl_anchored_pet": "26 SDXL – pet with IP-Adapter",
    "sdxl_anchored_person_and_pet": "27 SDXL – person and pet with IP-Adapter",
}
"""Name for the server (workflows/api/) → name in the list of templates (workflows/)."""

SERVER_NAMES = {template: name for name, template in TEMPLATES.items()}


def template(name: str) -> str:
    """The editor's file of a workflow; one that has no name of its own yet is called as its API file is."""
    return TEMPLATES.get(name, name)


def server_name(template: str) -> str:
    return SERVER_NAMES.get(template, template)
