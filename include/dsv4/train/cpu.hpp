// SPDX-License-Identifier: Apache-2.0
/// exec::cpu with all of its kernels for training.
#pragma once

#include <dsv4/train/cpu/adamw.hpp>
#include <dsv4/train/cpu/muon.hpp>
#include <dsv4/train/cpu/newton_schulz.hpp>
#include <dsv4/train/cpu/opd_loss.hpp>
#include <dsv4/train/cpu/router_balance.hpp>
